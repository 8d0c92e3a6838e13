"""What is kept of many rows of numbers: their moments, and a bounded sample; both can be merged."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]


class Moments(NamedTuple):
    """Mean and scatter of rows, exact however the rows are split.

    Merged as in Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances"
    (1979).

    Attributes
    ----------
    n : int
    mean : array of shape (n_columns,)
    scatter : array of shape (n_columns, n_columns)
        The covariance times ``n``.
    """

    n: int
    mean: npt.NDArray[np.float64]
    scatter: npt.NDArray[np.float64]

    @classmethod
    def of(cls, rows: npt.NDArray[np.float64]) -> Moments:
        """Of rows of shape (n_rows, n_columns)."""
        mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1])
        away = rows - mean
        return cls(len(rows), mean, away.T @ away)

    def merge(self, other: Moments) -> Moments:
        """Of the rows of both."""
        n = self.n + other.n
        if not n:
            return self
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.n * other.n / n)
        return Moments(n, self.mean + step * (other.n / n), scatter)


class Sample(NamedTuple):
    """At most so many rows, all equally likely to be among them: those with the smallest of random keys.

    Attributes
    ----------
    keys : array of shape (n_rows,)
    columns : tuple of arrays of n_rows each
    """

    keys: npt.NDArray[np.float64]
    columns: tuple[Rows, ...]

    @classmethod
    def of(cls, size: int, seed: int, *columns: Rows) -> Sample:
        """Draw from rows; the first column must be numbers."""
        content = zlib.crc32(np.ascontiguousarray(columns[0]).data)  # partitions do not know their number
        keys = np.random.default_rng([seed, content]).random(len(columns[0]))
        return cls(keys, columns)._smallest(size)

    def merge(self, other: Sample, size: int) -> Sample:
        """Draw from the rows of both."""
        pairs = zip(self.columns, other.columns, strict=True)
        both = Sample(np.concatenate([self.keys, other.keys]), tuple(np.concatenate(pair) for pair in pairs))
        return both._smallest(size)

    def _smallest(self, size: int) -> Sample:
        first = np.argsort(self.keys, kind="stable")[:size]
        return Sample(self.keys[first], tuple(column[first] for column in self.columns))


class Overview(NamedTuple):
    """Moments of all rows, and a sample of them."""

    moments: Moments
    sample: Sample


def overview(size: int, seed: int, matrix: npt.NDArray[np.float64], *columns: Rows) -> Overview:
    """Look at rows of shape (n_rows, n_columns), and at other columns of the rows that are sampled."""
    return Overview(Moments.of(matrix), Sample.of(size, seed, matrix, *columns))


def merge_overviews(size: int, a: Overview, b: Overview) -> Overview:
    """Make one of two."""
    return Overview(a.moments.merge(b.moments), a.sample.merge(b.sample, size))
