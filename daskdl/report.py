"""A notebook about finished runs, executed, and the same as one HTML page."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import fsspec


def write_report(folder: str, runs: Sequence[str], scores: Sequence[Sequence[str]]) -> tuple[str, str]:
    """Write ``report.ipynb``, executed in a kernel of its own, and ``report.html`` into a run's folder.

    Parameters
    ----------
    folder : str
        Local path or fsspec URL of the run.
    runs : sequence of str
        Ids; each run has an artifact ``test.parquet`` with the columns ``p`` and ``late``.
    scores : sequence of sequence of str
        The lines of the table: model, rows, seconds, rows/s, AUC, log loss.

    Returns
    -------
    tuple of str
        The two paths.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    notebook = _notebook(folder.rpartition("/")[0], list(runs), [list(line) for line in scores])
    no_port = Config({"KernelManager": {"transport": "ipc"}})  # that others on this machine could connect to
    NotebookClient(notebook, kernel_name="python3", timeout=300, config=no_port).execute()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your element with mimetype")  # holoviews' empty output
        page, _ = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(notebook)
    paths = f"{folder}/report.ipynb", f"{folder}/report.html"
    for path, text in zip(paths, (nbformat.writes(notebook), page), strict=True):
        with fsspec.open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return paths


def _notebook(root: str, runs: list[str], scores: list[list[str]]) -> Any:
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    cells = [
        new_markdown_cell(
            "# Late flights\n\nTwo models trained by `daskdl demo` on all flights that left New York City from January "
            "to October 2013, to tell before departure whether one arrives more than 15 minutes late; tested on "
            "November and December."
        ),
        new_code_cell(
            "import holoviews as hv\nimport pandas as pd\n\nimport daskdl\n\n"
            f"runs = [daskdl.load_run(id, root={root!r}) for id in {runs!r}]\n"
            "tests = [pd.read_parquet(run.open('test.parquet')) for run in runs]"
        ),
        new_code_cell(
            "columns = ['model', 'rows', 'seconds', 'rows/s', 'AUC', 'log loss']\n"
            f"pd.DataFrame({scores!r}, columns=columns).set_index('model')"
        ),
        new_markdown_cell("## How they trained"),
        *(new_code_cell(f"display(runs[{i}])\nruns[{i}].plot()") for i in range(len(runs))),
        new_markdown_cell("## How well they tell late flights from the others"),
        new_code_cell(
            "hv.Layout([\n"
            "    daskdl.plotting.plot_roc(test.late, test.p, title=run.name) for run, test in zip(runs, tests)\n"
            "])"
        ),
        new_markdown_cell("## Whether a probability means what it says"),
        new_code_cell(
            "hv.Layout([\n"
            "    daskdl.plotting.plot_calibration(test.late, test.p, title=run.name)\n"
            "    for run, test in zip(runs, tests)\n"
            "])"
        ),
    ]
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
