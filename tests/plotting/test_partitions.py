import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from daskdl import plotting
from daskdl.errors import DataError
from daskdl.plotting.partitions import fold, on_host


def total(x):
    return float(x.sum())


def add(a, b):
    return a + b


@pytest.mark.parametrize("n_partitions", [1, 3, 50])
def test_fold_of_a_lazy_collection_is_that_of_its_rows(n_partitions):
    frame = pd.DataFrame({"x": np.arange(500.0)})
    lazy = dd.from_pandas(frame, npartitions=n_partitions)
    assert fold(total, add, x=lazy["x"]) == fold(total, add, x=frame["x"]) == 499 * 250


def test_chunks_of_columns_are_put_beside_each_other():
    x = np.arange(12.0).reshape(4, 3)
    lazy = da.from_array(x, chunks=(2, 1))
    assert fold(lambda part: part.shape[1], max, x=lazy) == 3


def test_empty_partitions_count_as_nothing():
    frame = dd.from_map(lambda n: pd.DataFrame({"x": np.ones(n)}), [3, 0, 2], meta=pd.DataFrame({"x": [1.0]}))
    assert fold(total, add, x=frame["x"]) == 5.0


def test_partitions_of_different_lengths_are_refused():
    a, b = (dd.from_map(lambda n: pd.Series(np.ones(n)), sizes, meta=pd.Series([1.0])) for sizes in ([3, 2], [2, 3]))
    with pytest.raises(DataError, match="a has [23] rows and b [23]"):
        fold(lambda a, b: 0, add, a=a, b=b)


def test_on_host_asks_cudf_and_cupy_for_a_copy():
    class OnDevice:  # a cudf Series refuses to become an array by itself
        def to_pandas(self):
            return pd.Series([1, 2])

    class OnDeviceArray:
        def get(self):
            return np.array([3])

    assert on_host(OnDevice()).tolist() == [1, 2]
    assert on_host(OnDeviceArray()).tolist() == [3]


@pytest.mark.cluster
def test_workers_reduce_their_rows_and_their_errors_come_home(client):
    frame = dd.from_pandas(pd.DataFrame({"y": np.arange(1_000) % 2, "p": np.linspace(0, 1.5, 1_000)}), npartitions=4)
    half = frame[frame["p"] <= 1]
    assert plotting.roc_data(half["y"], half["p"]).attrs["auc"] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(DataError, match="probabilities from 0 to 1"):
        plotting.roc_data(frame["y"], frame["p"])
