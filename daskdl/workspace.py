"""How JupyterLab opens: a notebook at the left, panes of the Dask dashboard at the right. Pure."""

from __future__ import annotations

from typing import Any

ID = "daskdl"
LAUNCHER = "dask-dashboard-launcher"  # the JupyterLab extension's name for its side bar and its panes

PANES = {
    "individual-training": "Training",
    "individual-task-stream": "Task Stream",
    "individual-training-breakdown": "Training Breakdown",
    "individual-progress": "Progress",
    "individual-workers-memory": "Workers Memory",
}
"""Route of the dashboard -> label, the training curves first; the last two share a place."""


def workspace(dashboard_url: str, notebook: str | None) -> dict[str, Any]:
    """Return a JupyterLab workspace.

    Parameters
    ----------
    dashboard_url : str
        Of the dashboard's root, as the browser reaches it: ``/proxy/8787`` through the notebook server.
    notebook : str, optional
        Path from JupyterLab's root folder; without one the launcher stands at the left.
    """
    main = f"notebook:{notebook}" if notebook else "launcher"
    documents = {main: {"data": {"path": notebook, "factory": "Notebook"}}} if notebook else {}
    panes = {
        _pane(route): {"data": {"item": {"route": f"/{route}", "label": label, "key": label}}}
        for route, label in PANES.items()
    }
    return {
        "data": {
            "layout-restorer:data": _layout(main),
            LAUNCHER: {"url": dashboard_url, "cluster": ""},
            **documents,
            **panes,
        },
        "metadata": {"id": ID},
    }


def setting_overrides(dashboard_url: str) -> dict[str, Any]:
    """Return JupyterLab settings: the extension knows the dashboard, and nothing asks the internet for news."""
    return {
        "dask-labextension:plugin": {"defaultURL": dashboard_url, "hideClusterManager": True},
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    }


def _layout(main: str) -> dict[str, Any]:
    training, stream, breakdown, *rest = map(_pane, PANES)
    lower = _split("horizontal", [0.55, 0.45], [_area(breakdown), _area(*rest)])
    panes = _split("vertical", [0.45, 0.27, 0.28], [_area(training), _area(stream), lower])
    return {
        "main": {"dock": _split("horizontal", [0.45, 0.55], [_area(main), panes]), "current": main},
        "down": {"size": 0, "widgets": []},
        "left": {"collapsed": True, "visible": True, "widgets": ["filebrowser", LAUNCHER]},
        "right": {"collapsed": True, "visible": True, "widgets": ["jp-property-inspector", "debugger-sidebar"]},
        "relativeSizes": [0, 1, 0],
    }


def _pane(route: str) -> str:
    return f"{LAUNCHER}:/{route}"


def _area(*widgets: str) -> dict[str, Any]:
    return {"type": "tab-area", "currentIndex": 0, "widgets": list(widgets)}


def _split(orientation: str, sizes: list[float], children: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "split-area", "orientation": orientation, "sizes": sizes, "children": children}
