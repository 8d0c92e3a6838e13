"""How well the sample order mixes rows, beside a full shuffle and shuffle buffers; no clock is involved.

4 M rows in 64 row groups, global batches of 4,096. Columns:

- ``spread``: standard deviation of the places of a row group's rows in the epoch, over that of a full shuffle; the
  mean over groups, and the least.
- ``lag_...``: correlation of the row numbers of rows that are used so many places apart (1: in one batch, side by
  side; 4,096: at the same place of the next batch), which is 0 for a full shuffle. A lane stays in its row group for
  a while, so it is large here by construction.
- ``chi2``: sum over groups of (rows in the batch - expected)^2 / expected, over the degrees of freedom; the mean over
  batches. 1 is a full shuffle, 0 is every group alike in every batch, 4,096 is every batch from one group.
- ``drift``: standard deviation of the mean row number of a batch, over that of a full shuffle: how far a batch is from
  the average of the data where that changes with the row number.
- ``open``: row groups of which some rows have been read and others not.
- ``twice_W``: bytes read beyond once each in an epoch by W ranks, in percent.
"""

from __future__ import annotations

import json

import numpy as np

from daskdl.data.lanes import layout
from daskdl.data.order import SampleOrder

GROUPS, GROUP_ROWS, BATCH = 64, 62_500, 4_096
ROW_BYTES, OPEN_BYTES = 88, 5.5e6
N = GROUPS * GROUP_ROWS
WORLDS = (1, 2, 4, 8, 12)


def order_of_use(order: SampleOrder) -> np.ndarray:
    """Row numbers of an epoch in the order of their use, batch by batch and in each lane by lane."""
    rows, lanes = np.empty(N, dtype=np.int64), np.arange(N) % order.n_lanes
    for lane in range(order.n_lanes):
        offset = 0
        while offset < order.lane_rows(lane):
            window = order.window(lane, 0, offset)
            rows[order.window_places(lane, window)] = window.rows(order.group_starts)
            offset = window.stop
    return rows[np.lexsort((lanes, np.arange(N) // BATCH))]


def buffered(rows: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Give rows in the order of a shuffle buffer: a random row leaves, the next one takes its place."""
    buffer, out = rows[:size].tolist(), []
    for row, at in zip(rows[size:].tolist(), rng.integers(0, size, len(rows) - size).tolist(), strict=True):
        out.append(buffer[at])
        buffer[at] = row
    return np.array(out + rng.permutation(buffer).tolist())


def mixing(rows: np.ndarray) -> dict[str, float]:
    groups, places = rows // GROUP_ROWS, np.arange(N)
    means = np.bincount(groups, places) / GROUP_ROWS
    spread = np.sqrt(np.bincount(groups, (places - means[groups]) ** 2) / GROUP_ROWS) / (N / np.sqrt(12))
    batches = groups[: N // BATCH * BATCH].reshape(-1, BATCH)
    counts = np.stack([np.bincount(batch, minlength=GROUPS) for batch in batches])
    chi2 = ((counts - BATCH / GROUPS) ** 2 / (BATCH / GROUPS)).sum(axis=1).mean() / (GROUPS - 1)
    drift = rows[: N // BATCH * BATCH].reshape(-1, BATCH).mean(axis=1).std() / (N / np.sqrt(12 * BATCH))
    lags = {f"lag_{lag}": float(np.corrcoef(rows[:-lag], rows[lag:])[0, 1]) for lag in (1, 256, BATCH)}
    return {
        "spread": float(spread.mean()),
        "spread_min": float(spread.min()),
        **lags,
        "chi2": float(chi2),
        "drift": float(drift),
    }


def reading(order: SampleOrder) -> dict[str, float]:
    """Row groups open at once for one rank, and bytes read twice for several."""
    change = np.zeros(N + 1, dtype=np.int64)
    for lane in range(order.n_lanes):
        offset, left = 0, dict.fromkeys(range(GROUPS), 0)
        for group, first, stop in order.lane_segments(lane).tolist():
            left[group] += stop - first
        begun: set[int] = set()
        while offset < order.lane_rows(lane):
            window = order.window(lane, 0, offset)
            for group, first, stop in window.segments.tolist():
                left[group] -= stop - first
                if group not in begun and left[group]:
                    begun.add(group)
                    change[window.start * order.n_lanes] += 1
                elif group in begun and not left[group]:
                    begun.discard(group)
                    change[window.start * order.n_lanes] -= 1
            offset = window.stop
    found = {"open": float(change.cumsum().max())}
    for world in WORLDS:
        read = sum(
            stop * ROW_BYTES  # a group is read from its beginning
            for rank in range(world)
            for lane in order.lanes_of(rank, world)
            for _, _, stop in order.lane_segments(lane).tolist()
        )
        found[f"twice_{world}"] = 100 * (read / (N * ROW_BYTES) - 1)
    return found


def main() -> None:
    rng = np.random.default_rng(0)
    counts = [GROUP_ROWS] * GROUPS
    lanes, window_rows = layout(np.array(counts), BATCH, ROW_BYTES, OPEN_BYTES)
    in_files, in_memory = SampleOrder(counts, BATCH, lanes=lanes, window_rows=window_rows), SampleOrder(counts, BATCH)
    shards = np.concatenate([np.arange(GROUP_ROWS) + g * GROUP_ROWS for g in rng.permutation(GROUPS)])
    found = {
        f"daskdl, files ({lanes} lanes)": mixing(order_of_use(in_files)) | reading(in_files),
        f"daskdl, memory ({in_memory.n_lanes} lanes)": mixing(order_of_use(in_memory)) | reading(in_memory),
        "full shuffle": mixing(rng.permutation(N)) | {"open": float(GROUPS)},
        "buffer of 100,000": mixing(buffered(np.arange(N), 100_000, rng)) | {"open": 1.0},
        "groups, then buffer": mixing(buffered(shards, 100_000, rng)) | {"open": 1.0},
        "as they lie": mixing(np.arange(N)) | {"open": 1.0},
    }
    keys = list(dict.fromkeys(key for figures in found.values() for key in figures))
    print(f"{'':28}" + "".join(f"{key:>11}" for key in keys))
    for who, figures in found.items():
        print(f"{who:28}" + "".join(f"{figures[key]:>11.3f}" if key in figures else f"{'':>11}" for key in keys))
    ours, peer = found[f"daskdl, files ({lanes} lanes)"], found["groups, then buffer"]
    peers = {who: round(figures["chi2"], 3) for who, figures in found.items() if not who.startswith("daskdl")}
    line = {"name": "order_quality", "unit": "chi2 per degree of freedom", "better": "lower", "daskdl": ours["chi2"]}
    print(
        json.dumps(
            line | {"reference": "groups, then buffer", "peers": peers, "ratio": round(ours["chi2"] / peer["chi2"], 3)}
        )
    )


if __name__ == "__main__":
    main()
