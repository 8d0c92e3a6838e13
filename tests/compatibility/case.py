"""One line of docs/compatibility.md: what goes in, what comes out, and the check that it is so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distributed import Client


@dataclass(frozen=True)
class Case:
    """A promise of the table, and its proof.

    Attributes
    ----------
    group : str
        Heading under which the line stands.
    given : str
        What goes in, in Markdown.
    gets : str
        What comes out, or the error and its remedy, in Markdown.
    check : callable
        ``check(client)`` raises if that is not so; the client's cluster has two workers.
    """

    group: str
    given: str
    gets: str
    check: Callable[[Client], None]
