"""Which rows were used, shown by numbers that do not depend on the number of ranks."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.data.mixing import Mixture
from daskdl.data.order import Ints, SampleOrder

Use = tuple[int, int, int, int]  # first step, stop step, rows used, digest of them; steps of one epoch
MASK = (1 << 64) - 1
Hashes = npt.NDArray[np.uint64]


def hashes(places: Ints, rows: Ints) -> Hashes:
    """Hash of each (place in the epoch, row), whose sum modulo 2**64 is the digest of any set of uses.

    A sum does not care who added what: ranks add their parts up to the digest of a batch, batches to that of an epoch;
    and a row at another place, twice or missing changes it. The hash is the finaliser of SplitMix64 (Steele, Lea,
    Flood, "Fast splittable pseudorandom number generators", 2014).
    """
    with np.errstate(over="ignore"):
        x = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x ^= rows.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    return x


def total(found: Hashes) -> int:
    """Digest of some uses."""
    return int(found.sum(dtype=np.uint64))


def expected(order: SampleOrder | Mixture, first_step: int, stop_step: int) -> tuple[int, list[npt.NDArray[np.uint8]]]:
    """What the order alone says of global steps ``[first_step, stop_step)``, without reading a row.

    Returns
    -------
    digest : int
    used : list of array of shape (n_rows,)
        How often each row of each dataset is used, at most 255.
    """
    value = 0
    used = [np.zeros(part.n_rows, dtype=np.uint8) for part in order.parts]
    offsets = np.concatenate([[0], np.cumsum([part.n_rows for part in order.parts])])
    for k, epoch, first, stop in order.ranges(first_step, stop_step):
        for places, rows in _uses(order.parts[k], epoch, first, stop):
            np.add.at(used[k], rows, 1)
            value += total(hashes(places, rows + offsets[k]))
    return value & MASK, used


def _uses(part: SampleOrder, epoch: int, first: int, stop: int) -> list[tuple[Ints, Ints]]:
    """Places and rows of positions ``[first, stop)`` of an epoch, window by window."""
    found = []
    for lane in range(part.n_lanes):
        offset, end = -((lane - first) // part.n_lanes), -((lane - stop) // part.n_lanes)
        while offset < end:
            window = part.window(lane, epoch, offset)
            places = part.window_places(lane, window)
            inside = (places >= first) & (places < stop)
            found.append((places[inside], window.rows(part.group_starts)[inside]))
            offset = window.stop
    return found


def audit_table(order: SampleOrder | Mixture, uses: Sequence[Use]) -> pd.DataFrame:
    """Compare what was used with what the order says; see ``Run.audit``."""
    steps = order.steps_per_epoch
    rows = []
    for epoch in sorted({first // steps for first, *_ in uses}):
        mine = sorted(use for use in uses if use[0] // steps == epoch)
        plans = [expected(order, first, stop) for first, stop, *_ in mine]
        digest, planned = sum(use[3] for use in mine), sum(value for value, _ in plans)
        counts = np.sum([np.concatenate(used) for _, used in plans], axis=0)
        rows.append(
            {
                "epoch": epoch,
                "steps": sum(stop - first for first, stop, *_ in mine),
                "rows": sum(n for _, _, n, _ in mine),
                "min": int(counts.min()),
                "max": int(counts.max()),
                "digest": f"{digest & MASK:016x}",
                "as_planned": digest & MASK == planned & MASK,
            }
        )
    return pd.DataFrame(rows, columns=["epoch", *COLUMNS]).set_index("epoch")


COLUMNS = ("steps", "rows", "min", "max", "digest", "as_planned")
FIELDS = ("batch_size", "seed", "shuffle", "drop_last", "lanes", "window_rows", "least_rows")


def order_to_bytes(order: SampleOrder | Mixture) -> bytes:
    """Pack an order to keep it; see ``order_from_bytes``."""
    about: dict[str, object] = {"parts": [{name: getattr(part, name) for name in FIELDS} for part in order.parts]}
    if isinstance(order, Mixture):
        about |= {"ratios": order.ratios, "batch_size": order.batch_size, "epoch_rows": order.epoch_rows}
    file = io.BytesIO()
    counts = {f"counts{k}": part.row_counts for k, part in enumerate(order.parts)}
    np.savez_compressed(file, about=np.array(json.dumps(about)), **counts)  # type: ignore[arg-type]
    return file.getvalue()


def order_from_bytes(data: bytes) -> SampleOrder | Mixture:
    """Undo ``order_to_bytes``; nothing is unpickled."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        parts = tuple(SampleOrder(file[f"counts{k}"], **part) for k, part in enumerate(about["parts"]))
    if "ratios" not in about:
        return parts[0]
    return Mixture(parts, tuple(about["ratios"]), about["batch_size"], about["epoch_rows"])
