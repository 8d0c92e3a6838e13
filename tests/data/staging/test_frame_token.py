from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from data.conformance import run_elsewhere

from daskdl.data.staging.frame_token import _module_text, frame_token


def frame(seed: int = 0) -> dd.DataFrame:
    rng = np.random.default_rng(seed)
    return dd.from_pandas(pd.DataFrame({"a": rng.random(100), "k": range(100)}), npartitions=4)


def test_read_parquet_has_one_name_in_every_process(tmp_path: Path) -> None:
    frame().to_parquet(str(tmp_path / "p"))
    code = """
        import dask.dataframe as dd
        from daskdl.data.staging.frame_token import frame_token
        lazy = dd.read_parquet(sys.argv[1])
        print(frame_token(lazy.assign(b=lazy.a + 1)[lazy.k > 2]))
    """
    code = "import sys\nsys.path[:0] = {path!r}\n" + textwrap.dedent(code)

    def here() -> str:
        lazy = dd.read_parquet(str(tmp_path / "p"))
        return frame_token(lazy.assign(b=lazy.a + 1)[lazy.k > 2])

    first = here()
    assert run_elsewhere(code, str(tmp_path / "p")) == first == here()
    alive = dd.read_parquet(str(tmp_path / "p"))
    frame(seed=1).to_parquet(str(tmp_path / "p"))
    assert here() != first and len(alive.columns) == 2


def test_a_changed_csv_file_is_another_frame(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    text = pd.DataFrame({"a": range(100_000), "b": 1}).to_csv(index=False)
    path.write_text(text)
    first = dd.read_csv(str(path))
    token = frame_token(first)
    assert frame_token(dd.read_csv(str(path))) == token
    path.write_text(text.replace("99000,1", "99000,2"))
    os.utime(path, ns=(1, 1))
    second = dd.read_csv(str(path))
    assert second._name == first._name  # what Dask says; if this fails, the comment in frame_token is out of date
    assert frame_token(second) != token


def test_random_frames_are_new_each_time() -> None:
    @dask.delayed
    def draw() -> pd.DataFrame:
        return pd.DataFrame({"a": np.random.rand(3)})

    def of_delayed() -> dd.DataFrame:
        return dd.from_delayed([draw()], meta={"a": float})

    assert frame_token(of_delayed()) != frame_token(of_delayed())
    assert frame_token(frame().sample(frac=0.5)) != frame_token(frame().sample(frac=0.5))
    seeded = frame().sample(frac=0.5, random_state=1), frame().sample(frac=0.5, random_state=1)
    assert frame_token(seeded[0]) == frame_token(seeded[1])


def test_a_function_counts_with_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "my_loader.py"
    names = []
    for value in (1, 2):
        module.write_text(f"import pandas as pd\ndef load(i): return pd.DataFrame({{'a': [{value}]}})\n")
        sys.modules.pop("my_loader", None)
        import my_loader

        names.append(frame_token(dd.from_map(my_loader.load, [1, 2], meta={"a": "int64"})))
    assert names[0] != names[1]
    assert _module_text("pandas") == ""
