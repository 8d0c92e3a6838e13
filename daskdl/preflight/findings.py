"""What the facts mean: a pure function from what is known to what should be said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from daskdl.data.schema.columns import shared_codes
from daskdl.data.schema.stats import MAX_CATEGORIES, ColumnStats
from daskdl.preflight import resources
from daskdl.preflight.facts import FEW_ROWS, Facts
from daskdl.preflight.report import Finding, by_severity

MOSTLY = 0.5  # share of missing values from which a column is worth a word
NEW = 0.05  # share of rows with categories that are new
RARE, VERY_RARE = 0.05, 0.01  # share of the rarest class
SHOWN = 6  # columns named in a line
MOST_REFUSED = 8
KIND_WORDS = {
    "number": "numbers",
    "category": "categories",
    "time": "dates",
    "array": "arrays",
    "ragged": "lists",
    "image": "images",
    "text": "texts",
}
OWN_MODULE = ("image", "ragged", "text")


def findings(facts: Facts) -> list[Finding]:
    """Judge the facts; everything that was looked at gets at least one line, most severe first.

    Examples
    --------
    >>> facts = Facts(columns={"x": ColumnStats("number", n=100, low=3.0, high=3.0)}, looked=100)
    >>> print(next(f for f in findings(facts) if f.verdict == "note"))
    constant: 1 column has one value only: x. It tells nothing about the label. Leave it out.
    """
    found: list[Finding] = []
    for judge in (unfinished, columns, missing, values, label, categories, *resources.JUDGES):
        found += judge(facts)
    return by_severity(found)


def worth_saying(facts: Facts, most: int = 5) -> list[Finding]:
    """What a fit says of its data: no more than the ``most`` severe findings, and none that is ok."""
    return [f for f in findings(facts) if f.verdict != "ok"][:most]


def unfinished(facts: Facts) -> Iterator[Finding]:
    """What could not be looked at."""
    for what in facts.incomplete:
        yield Finding(
            "check", "note", f"{what}.", "What depends on it is left out here.", "Look again: daskdl.check(...)."
        )
    if facts.failed:
        yield Finding(
            "rows",
            "refused",
            f"the rows cannot be computed: {facts.failed}",
            "fit computes the same rows and would fail as this did.",
            "Compute a partition to see all of the error: df.to_delayed()[0].compute().",
        )
    elif facts.unfinished:
        yield Finding(
            "time",
            "note",
            f"time was up while {facts.unfinished}; what follows is what was known by then.",
            "Partitions that take long are computed before the first step; what was begun has been cancelled.",
            "Look again after df = df.persist(), or look at some rows: daskdl.check(df.head(10_000), ...).",
        )
    elif facts.rows == 0:
        whole = facts.exact or facts.whole
        yield Finding(
            "rows",
            "refused" if whole else "warning",
            "there are no rows." if whole else "the partitions that were looked at have no rows.",
            "There is nothing to learn from.",
            "Look at the filters and joins that made the frame.",
        )


# -- columns ------------------------------------------------------------------------------------------------------


def columns(facts: Facts) -> Iterator[Finding]:
    """How each column is read, and which are refused."""
    for name, message in list(facts.refused.items())[:MOST_REFUSED]:
        yield _refused("column", name, message)
    if len(facts.refused) > MOST_REFUSED:
        more = list(facts.refused)[MOST_REFUSED:]
        yield Finding(
            "column",
            "refused",
            f"{_count(more)} more cannot be read: {_names(more)}.",
            "fit stops at the first of them.",
            "Convert these columns or leave them out.",
        )
    kinds: dict[str, list[Any]] = {}
    for name, kind in facts.kinds.items():
        kinds.setdefault(kind, []).append(name)
    if kinds:
        said = "; ".join(f"{KIND_WORDS[kind]}: {_names(names)}" for kind, names in kinds.items())
        yield Finding("columns", "ok", f"read as {said}")
    own = [name for name, kind in facts.kinds.items() if kind in OWN_MODULE]
    if own:
        yield Finding(
            "columns",
            "note",
            f"{_count(own)} of images, lists or texts: {_names(own)}.",
            "The default network and trees take numbers, dates, categories and arrays of one shape.",
            "Give TorchClassifier or TorchRegressor a module that takes them, or leave them out.",
        )


def _refused(check: str, name: Any, message: str) -> Finding:
    """Split a message of fit: its last sentence is what to do."""
    found, _, remedy = message.rpartition(". ")
    prefix = "" if repr(name) in message else f"{name!r}: "
    return Finding(
        check, "refused", f"{prefix}{found or message}.", "fit refuses it before it launches anything.", remedy
    )


def missing(facts: Facts) -> Iterator[Finding]:
    """Missing values; few of them are no finding."""
    shares = {n: s.n_missing / s.n for n, s in facts.columns.items() if s.n and s.n_missing}
    empty = [n for n, share in shares.items() if share == 1]
    if empty:
        yield Finding(
            "missing",
            "warning",
            f"{_count(empty)} without a single value: {_names(empty)}.",
            "A column that is always missing is zeros for a model, and another type as soon as a value comes.",
            "Leave it out.",
        )
    mostly = [n for n, share in shares.items() if MOSTLY < share < 1]
    if mostly:
        yield Finding(
            "missing",
            "note",
            "more than half of the values are missing in "
            + ", ".join(f"{n} ({shares[n]:.0%})" for n in mostly[:SHOWN])
            + (f" and {len(mostly) - SHOWN} more." if len(mostly) > SHOWN else "."),
            "The mean stands in for most rows, and hides which are real.",
            "fit with missing='indicator' (a 0/1 feature says so), fill them, or leave the column out.",
        )
    if not empty and not mostly and facts.columns:
        yield Finding("missing", "ok", _few_missing(shares))


def _few_missing(shares: dict[Any, float]) -> str:
    if not shares:
        return "none"
    worst = max(shares, key=lambda n: shares[n])
    return (
        f"in {_count(list(shares))}, at most {max(shares[worst], 0.001):.1%} ({worst}); see missing= of the estimator"
    )


def values(facts: Facts) -> Iterator[Finding]:
    """Columns that tell nothing, or too much."""
    constant = [n for n, s in facts.columns.items() if is_constant(s)]
    if constant:
        one = len(constant) == 1
        yield Finding(
            "constant",
            "note",
            f"{_count(constant)} {'has' if one else 'have'} one value only: {_names(constant)}.",
            f"{'It tells' if one else 'They tell'} nothing about the label.",
            f"Leave {'it' if one else 'them'} out.",
        )
    if facts.identifiers:
        yield Finding(
            "identifier",
            "warning",
            f"(nearly) as many different values as rows: {_names(facts.identifiers)}.",
            "A model learns such a column by heart and knows nothing of new rows.",
            "Leave it out, or make a feature of it that rows share.",
        )
    for how in dict.fromkeys(facts.leaks.values()):
        names = [n for n, text in facts.leaks.items() if text == how]
        yield Finding(
            "leak",
            "warning",
            f"{_names(names)} {how}.",
            "What gives the label away is rarely known when a prediction is wanted: scores look perfect and are not.",
            "Leave it out unless it is known before the label is.",
        )
    if facts.columns and not (constant or facts.identifiers or facts.leaks):
        yield Finding("values", "ok", "no column is constant, an identifier, or gives the label away")


def is_constant(stats: ColumnStats) -> bool:
    """Whether a column has one value only; missing counts as another where there are both."""
    if stats.n < 2 or stats.n_missing:
        return False
    if stats.kind == "category":
        return len(stats.values) == 1
    return stats.kind in ("number", "time") and stats.low == stats.high


def categories(facts: Facts) -> Iterator[Finding]:
    """Categories that the last partition has and the first has not."""
    many = {n: new for n, (share, new) in facts.new_categories.items() if share >= NEW}
    few = len(facts.new_categories) - len(many)
    yield from _many_categories(facts)
    if few:
        yield Finding(
            "categories", "ok", f"{few} columns have a few more in the last partition; fit learns all of them"
        )
    if many:
        said = ", ".join(
            f"{n} ({facts.new_categories[n][0]:.0%} of its rows, such as {_names(new[:2])})" for n, new in many.items()
        )
        yield Finding(
            "categories",
            "note",
            f"the last partition has categories that the first has not: {said}.",
            "fit learns those of all partitions; but what comes later will bring new ones, and all of these are one "
            "unknown category for the model.",
            "Test on the newest rows, and group such categories or use what stands behind them.",
        )


def _many_categories(facts: Facts) -> Iterator[Finding]:
    """Columns whose rare categories have no code of their own."""
    found = [name for name, s in facts.columns.items() if s.kind == "category" and s.n_different > MAX_CATEGORIES]
    for name in found[:SHOWN]:
        n = facts.columns[name].n_different
        yield Finding(
            "categories",
            "note",
            f"{name} has about {n:,} different values: the {MAX_CATEGORIES:,} most frequent get a code each, others "
            f"share {shared_codes(n - MAX_CATEGORIES):,} codes by a hash.",
            "Rare values that share a code are one for the model; values that come later get a shared code, too.",
            f"Group the rare ones; for a network also kinds={{{name!r}: daskdl.Category(top=..., buckets=...)}}.",
        )


# -- the label ----------------------------------------------------------------------------------------------------


def label(facts: Facts) -> Iterator[Finding]:
    """What is predicted, and how often each class comes up."""
    stats = facts.label
    if stats is None or not stats.n:
        if facts.label_refused:
            yield _refused("label", facts.label_name, facts.label_refused)
        return
    alone = facts.task == "classes" and len(stats.values) == 1 and not stats.n_missing
    if alone and not facts.whole:
        yield _one_class_here(stats)
    elif facts.label_refused:
        yield _refused("label", facts.label_name, facts.label_refused)
    elif facts.task == "classes":
        yield from _balance(facts, stats)
    elif np.ndim(stats.m2):
        yield Finding("label", "ok", f"{np.size(stats.m2)} numbers for each row")
    else:
        yield _number(stats)
    if facts.sorted_by_label:
        yield Finding(
            "label",
            "note",
            "rows that lie together are of one class only: the rows are sorted by the label.",
            "Batches are mixed from many places, but what is read together is alike; few partitions mix badly.",
            "Shuffle the rows once, and write them to Parquet in that order.",
        )


def _one_class_here(stats: ColumnStats) -> Finding:
    return Finding(
        "label",
        "warning",
        f"one class only in the {stats.n:,} rows that were looked at: {_names(list(stats.values))}.",
        "If the other partitions are like this one there is nothing to tell apart, and fit refuses the data.",
        "Look at all labels: df[label].value_counts().compute().",
    )


def _balance(facts: Facts, stats: ColumnStats) -> Iterator[Finding]:
    n = sum(stats.values.values())
    common = sorted(stats.values.items(), key=lambda pair: -pair[1])
    said = ", ".join(f"{value} {count / n:.1%}" for value, count in common[:SHOWN])
    text = f"{len(common)} classes: {said}{', ...' if len(common) > SHOWN else ''}"
    share = common[-1][1] / n if common else 1.0
    even = share * len(common)  # 1 if all classes come up alike
    if n < FEW_ROWS or share >= RARE or even > 0.5:
        yield Finding("label", "ok", text)
        return
    yield Finding(
        "label",
        "warning" if share < VERY_RARE else "note",
        f"{text}; the rarest, {common[-1][0]}, is {share:.2%}.",
        "A model that never says the rare class is right nearly always; accuracy hides it, and few batches have it.",
        "Judge by AUC or log loss, and try TorchClassifier(sampling='balanced').",
    )


def _number(stats: ColumnStats) -> Finding:
    known = max(1, stats.n_seen)
    if not stats.m2:
        return Finding(
            "label",
            "warning",
            f"the label is {stats.mean:.4g} in all {stats.n:,} rows that were looked at.",
            "There is nothing to learn.",
            "Look at how the rows were selected.",
        )
    text = f"a number: mean {stats.mean:.4g}, standard deviation {(stats.m2 / known) ** 0.5:.4g}"
    return Finding("label", "ok", f"{text}; for TorchRegressor and XGBRegressor, a classifier refuses fractions")


# -- words --------------------------------------------------------------------------------------------------------


def _names(names: Sequence[Any]) -> str:
    shown = ", ".join(str(name)[:40] for name in names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _count(names: Sequence[Any]) -> str:
    return f"{len(names)} column{'s' if len(names) > 1 else ''}"
