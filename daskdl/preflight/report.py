"""What a check found, as a value: shown as text, as HTML, as a table."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from daskdl.errors import DataError
from daskdl.tracking.colors import ALERT, STATE_COLORS
from daskdl.tracking.summary import duration

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = ("refused", "warning", "note", "ok")  # most severe first
COLORS = {
    "refused": ALERT,
    "warning": STATE_COLORS["stopped"],
    "note": STATE_COLORS["running"],
    "ok": STATE_COLORS["finished"],
}
WIDTH = 118


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    check : str
        What: ``"label"``, ``"memory"``, ...
    verdict : {"ok", "note", "warning", "refused"}
    found : str
    why, do : str
        Why it matters and what to do; empty if the verdict is ok.
    """

    check: str
    verdict: str
    found: str
    why: str = ""
    do: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (f"{self.check}: {self.found}", self.why, self.do) if part)

    @property
    def line(self) -> str:
        """What a run says of it: what was found and what to do."""
        return f"{self.verdict}, {self.check}: {self.found} {self.do}".rstrip()


def by_severity(found: Sequence[Finding]) -> list[Finding]:
    """Sort, most severe first; what is equally severe stays in its order."""
    return sorted(found, key=lambda f: VERDICTS.index(f.verdict))


@dataclass(frozen=True, repr=False)
class CheckReport:
    """What ``daskdl.check`` found.

    Attributes
    ----------
    findings : tuple of Finding
        Most severe first.
    title : str
        What was looked at.
    seconds : float
        How long it took.

    Examples
    --------
    >>> report = CheckReport((Finding("label", "ok", "2 classes"),), "100 rows", 0.1)
    >>> report
    daskdl.check: 100 rows. Nothing to complain about, 0.1 s.
    <BLANKLINE>
    ok       label        2 classes
    >>> report.ok, len(report.table)
    (True, 1)
    """

    findings: tuple[Finding, ...]
    title: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is refused."""
        return all(f.verdict != "refused" for f in self.findings)

    @property
    def table(self) -> pd.DataFrame:
        """One row a finding: ``check``, ``verdict``, ``found``, ``why``, ``do``."""
        import pandas as pd

        names = ["check", "verdict", "found", "why", "do"]
        return pd.DataFrame([[getattr(f, name) for name in names] for f in self.findings], columns=names)

    def raise_if_refused(self) -> None:
        """Raise what would stop a fit.

        Raises
        ------
        DataError
            Names everything that is refused.
        """
        refused = [f for f in self.findings if f.verdict == "refused"]
        if refused:
            lines = "\n".join(f"- {f}" for f in refused)
            raise DataError(f"{len(refused)} finding(s) that a training cannot get past:\n{lines}")

    def _summary(self) -> str:
        counts = Counter(f.verdict for f in self.findings)
        said = [f"{counts[v]} {v}{'s' * (counts[v] > 1 and v != 'refused')}" for v in VERDICTS[:-1] if counts[v]]
        return ", ".join(said) or "Nothing to complain about"

    def __repr__(self) -> str:
        head = f"daskdl.check: {self.title}. {self._summary()}, {duration(self.seconds)}."
        lines = [*textwrap.wrap(head, WIDTH), ""]
        for f in self.findings:
            lines += _wrapped(f"{f.verdict:<8} {f.check:<12} ", f.found)
            lines += _wrapped(" " * 22 + "why  ", f.why) + _wrapped(" " * 22 + "do   ", f.do)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        rows = "".join(_html_row(f) for f in self.findings)
        grid = "display:grid;grid-template-columns:auto auto 1fr;gap:.25em 1em;margin-top:.4em"
        return (
            '<div style="font:13px/1.5 system-ui,sans-serif;color:inherit;background:transparent;max-width:62em;'
            'border:1px solid color-mix(in srgb,currentColor 22%,transparent);border-radius:6px;padding:.6em .9em">'
            f'<div style="display:flex;gap:.7em;align-items:baseline"><b>daskdl.check</b>'
            f'<span style="{_colored(self._worst())}">{escape(self._summary())}</span>'
            f'<span style="margin-left:auto;white-space:nowrap">{_dim(duration(self.seconds))}</span></div>'
            f'<div>{_dim(escape(self.title))}</div><div style="{grid}">{rows}</div></div>'
        )

    def _worst(self) -> str:
        return self.findings[0].verdict if self.findings else "ok"


def _wrapped(head: str, text: str) -> list[str]:
    if not text:
        return []
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=True)


def _html_row(f: Finding) -> str:
    more = "".join(
        f'<div style="display:grid;grid-template-columns:2.6em minmax(0,1fr)">{_dim(name)}'
        f"<span>{escape(text)}</span></div>"
        for name, text in (("why", f.why), ("do", f.do))
        if text
    )
    return (
        f'<span style="{_colored(f.verdict)}">{f.verdict}</span>'
        f'<span style="white-space:nowrap">{escape(f.check)}</span>'
        f'<div style="min-width:0;overflow-wrap:anywhere">{escape(f.found)}{more}</div>'
    )


def _colored(verdict: str) -> str:
    """Style of a verdict's words: its color, brought nearer to that of the text, to be read on light and dark pages."""
    return f"color:color-mix(in srgb,{COLORS[verdict]} 75%,currentColor);font-weight:600"


def _dim(html: str) -> str:
    return f'<span style="opacity:.65">{html}</span>'
