"""How JupyterLab opens: a notebook at the left, panes of the Dask dashboard at the right. Pure."""

from __future__ import annotations

import json
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

EXTENSION = "daskdl-lab"
# JupyterLab drops a cell that is run before its notebook has a kernel, some seconds after it is shown, without a word;
# the cells after it then miss what it defines. With this they wait for the kernel. It is a federated extension, in the
# form that webpack would give it.
PATIENCE = """
(() => {
  const plugin = ({ INotebookTracker }) => ({
    id: "daskdl-lab:patience",
    autoStart: true,
    requires: [INotebookTracker],
    activate: (app, tracker) => {
      const wait = (panel) => {
        const context = panel.sessionContext;
        const start = context.startKernel.bind(context);
        const begin = async () => {
          await Promise.all([context.sessionManager.ready, context.specsManager.ready]);
          for (let i = 0; i < 100 && !context.session?.kernel && !context.kernelPreference.name; i++)
            await new Promise((over) => setTimeout(over, 50));  // until the notebook says which kernel it wants
          return context.session?.kernel ? false : start();
        };
        let begun;  // one start for the notebook that opens and all cells that are run meanwhile
        Object.defineProperty(context, "hasNoKernel", { get: () => !context.session?.kernel });
        context.startKernel = () => (begun ??= begin().finally(() => { begun = undefined; }));
      };
      tracker.forEach(wait);
      tracker.widgetAdded.connect((_, panel) => wait(panel));
    },
  });
  let shared;
  (window._JUPYTERLAB ??= {})["daskdl-lab"] = {
    init: (scope) => { shared = scope; },
    get: async () => {
      const notebook = (await Object.values(shared["@jupyterlab/notebook"])[0].get())();
      return () => ({ __esModule: true, default: plugin(notebook) });
    },
  };
})();
"""


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


def extension() -> dict[str, str]:
    """Return the files of the extension by which cells wait for their kernel, by their path in its folder."""
    load = {"load": "static/remoteEntry.js", "extension": "./extension"}
    package = {"name": EXTENSION, "version": "1.0.0", "jupyterlab": {"extension": True, "_build": load}}
    return {"package.json": json.dumps(package), load["load"]: PATIENCE}


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
