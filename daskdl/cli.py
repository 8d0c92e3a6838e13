"""The command ``daskdl``. Like ``connect()``, a place where configuration is read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from daskdl import __version__
from daskdl.errors import DaskdlError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except DaskdlError as error:
        print(f"daskdl {args.command}: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="daskdl", description="From a Dask DataFrame to a trained model.")
    top.add_argument("--version", action="version", version=f"daskdl {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(commands)
    _add_lab(commands)
    _add_runs(commands)
    return top


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser("demo", help="train XGBoost and PyTorch on real flights and compare them")
    demo.add_argument("--n-workers", type=int, help="worker processes; one per GPU or core by default")
    demo.add_argument("--runs", help="folder that the runs are kept in")
    demo.set_defaults(run=_demo)


def _add_lab(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    lab = commands.add_parser("lab", help="a cluster, and JupyterLab beside its dashboard")
    lab.add_argument("--port", type=int, default=8888, help="of JupyterLab; 0 is any free one")
    lab.add_argument("--dashboard-port", type=int, default=8787, help="of the Dask dashboard; 0 is any free one")
    lab.add_argument("--n-workers", type=int, help="worker processes; one per GPU or core by default")
    lab.add_argument("--notebook-dir", default=".", help="JupyterLab's root folder")
    lab.add_argument("--ip", default="127.0.0.1", help="address that JupyterLab listens on")
    lab.add_argument("--token", help="of JupyterLab; random by default")
    lab.add_argument("--no-browser", dest="browser", action="store_false", help="only print the address")
    lab.set_defaults(run=_lab)


def _add_runs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    runs = commands.add_parser("runs", help="list the runs that are kept")
    runs.add_argument("--root", help="folder that the runs are kept in")
    runs.set_defaults(run=_runs)


def _demo(args: argparse.Namespace) -> int | None:
    from daskdl import demo

    return demo.main(args)


def _lab(args: argparse.Namespace) -> int:
    from daskdl import lab

    names = ("port", "dashboard_port", "n_workers", "notebook_dir", "ip", "token", "browser")
    return lab.main(lab.Options(**{name: getattr(args, name) for name in names}))


def _runs(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from daskdl.run import runs

    frame = runs(args.root)
    table = Table("id", "name", "algorithm", "state", "started", "seconds")
    for row in frame[[column.header for column in table.columns]].itertuples(index=False):
        table.add_row(*(f"{cell:.1f}" if isinstance(cell, float) else f"{cell}" for cell in row))
    Console().print(table if len(frame) else "No runs yet.")


if __name__ == "__main__":
    sys.exit(main())
