import io
import os
import pty
import re
import select
import subprocess
import sys

import pytest
from rich.console import Console

from daskdl.display import _bar, live
from daskdl.errors import DataError
from daskdl.run import Run
from daskdl.tracking import summary
from daskdl.tracking.card import html_card

SCRIPT = """
import sys, time
from daskdl.display import live
from daskdl.run import Run
with Run.start("flights", "torch", {}, total_steps=100, root=sys.argv[1]) as run, live(run):
    for step in range(1, 61):
        run.log(step, train_loss=1 / step, rows_per_s=3.2e6)
        time.sleep(0.01)
    print("said in between")
    time.sleep(0.3)
    if sys.argv[2] == "fail":
        raise ValueError("too wide")
    if sys.argv[2] == "stop":
        raise KeyboardInterrupt
"""


def in_terminal(*args):
    """Run the script in a pseudo-terminal and return what a person saw, without colors."""
    mine, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *args], stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    )
    seen = b""
    while process.poll() is None or select.select([mine], [], [], 0)[0]:
        if select.select([mine], [], [], 0.1)[0]:
            seen += os.read(mine, 65536)
    os.close(mine)
    os.close(theirs)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode()).replace("\r", "\n")


@pytest.fixture
def run(tmp_path):
    return Run.start("flights", "torch", {"lr": 0.1}, total_steps=100, root=tmp_path)


def test_terminal_shows_a_bar_that_ends(tmp_path):
    seen = in_terminal(str(tmp_path), "finish")
    for part in ("flights", "60%", "3.2 M rows/s", " left", "100%"):
        assert part in seen
    lines = [line for line in seen.splitlines() if line.strip()]
    assert "finished in" in lines[-1]
    assert sum("finished in" in line for line in lines) == 1
    assert sum("said in between" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("how", "state", "text"),
    [("fail", "failed in", "ValueError: too wide"), ("stop", "stopped in", "stopped by KeyboardInterrupt")],
)
def test_terminal_shows_how_it_failed(tmp_path, how, state, text):
    lines = [line for line in in_terminal(str(tmp_path), how).splitlines() if line.strip()]
    assert state in lines[-2]
    assert lines[-1].strip() == text


def test_elsewhere_one_line_at_the_end(run, capsys):
    with run, live(run):
        run.log(50, train_loss=0.5)
        assert capsys.readouterr().out == ""
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    for part in ("flights (torch)", "finished", "step 50 of 100", "loss 0.5"):
        assert part in out


@pytest.mark.parametrize("outside", [True, False])
def test_failure_is_shown_whoever_ends_first(run, capsys, outside):
    first, second = (live(run), run) if outside else (run, live(run))
    with pytest.raises(ValueError, match="too wide"), first, second:
        raise ValueError("too wide")
    assert re.search("failed.*ValueError: too wide", capsys.readouterr().out)


def test_verbose_0_is_silent(run, capsys):
    with run, live(run, verbose=0):
        pass
    assert capsys.readouterr() == ("", "")


def test_display_leaves_the_run_alone(run):
    with live(run):
        pass
    assert run.state == "running"


# in a real kernel


def execute(*cells):
    """Run a notebook in a real kernel and return the outputs of its cells."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3", allow_errors=True, timeout=60).execute()
    return [cell.outputs for cell in notebook.cells]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """One kernel for all of the tests below; it starts in a second or two."""
    setup = f"""
import time
from daskdl.display import live
from daskdl.run import Run
def fit(error=None, verbose=1):
    with Run.start("flights", "torch", {{"lr": 0.1}}, root={str(tmp_path_factory.mktemp("runs"))!r}) as run:
        with live(run, verbose=verbose):
            for step in range(1, 41):
                run.log(step, train_loss=1 / step)
                time.sleep(0.02)
            if error: raise error
shown = []
"""
    watch = """
from IPython.display import DisplayHandle
update = DisplayHandle.update
def watched(self, *args, **kwargs):
    shown.append(args[0]["text/plain"]); update(self, *args, **kwargs)
DisplayHandle.update = watched
"""
    calls = ["fit()", "fit(ValueError('too <wide>'))", "fit(KeyboardInterrupt())", "fit(verbose=0)"]
    return execute(setup + watch, *calls, "print(len({s for s in shown[:8] if 'running' in s}))")


def test_notebook_keeps_one_card_with_the_end(outputs):
    (card,) = outputs[1]  # and nothing beside it, whatever MLflow has to say while it is imported
    assert card.output_type == "display_data"
    assert "finished" in card.data["text/html"]
    assert "<svg" in card.data["text/html"]
    assert "<script" not in card.data["text/html"]
    assert "flights (torch), finished" in card.data["text/plain"]


def test_notebook_card_tells_the_error(outputs):
    card, traceback = outputs[2]
    assert "failed" in card.data["text/html"]
    assert "ValueError: too &lt;wide&gt;" in card.data["text/html"]
    assert traceback.ename == "ValueError"


def test_notebook_card_tells_that_it_was_stopped(outputs):
    card = outputs[3][0]
    assert "stopped by KeyboardInterrupt" in card.data["text/html"]


def test_notebook_is_silent_if_asked(outputs):
    assert outputs[4] == []


def test_notebook_moves_while_the_cell_blocks(outputs):
    assert int(outputs[5][0].text) >= 2


def test_card_and_bar_tell_what_happened_on_the_way(run):
    run.event("worker_lost", "tcp://<a> left the cluster.", step=1_500)
    run.event("cause", "rank 1 was killed by signal 9", step=1_500)
    run.event("note", "nobody asked")
    assert summary.news(run.record) == [
        ("worker_lost", "step 1,500: tcp://<a> left the cluster."),
        ("cause", "step 1,500: rank 1 was killed by signal 9"),
    ]
    card = html_card(run.record)
    assert "tcp://&lt;a&gt; left" in card and "signal 9" in card and "nobody asked" not in card
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(_bar(run.record))
    assert "signal 9" in console.export_text()


def test_an_error_that_was_caught_is_a_card_with_what_was_added_to_it() -> None:
    error = DataError("column <b> has no values")
    error.add_note("in rank 1")
    html = error._repr_html_()
    assert "DataError" in html and "column &lt;b&gt; has no values" in html and "in rank 1" in html
