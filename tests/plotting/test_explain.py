import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

import daskdl
from daskdl import plotting
from daskdl.errors import DataError
from daskdl.tracking.writer import writer

N = 3_000


@pytest.fixture(scope="module")
def trees():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"noise": rng.normal(size=N), "x": rng.normal(size=N), "city": rng.choice(["Oslo", "Rome"], N)})
    X["idle"] = 1.0
    when = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 365 * 24, N), unit="h")
    y = X.x + 0.5 * (X.city == "Rome") + (when.hour > 12) > 0.7
    fitted = daskdl.XGBClassifier(n_estimators=8, max_depth=3, verbose=0).fit(X.assign(when=when), y)
    writer.flush(60.0)  # its thread imports MLflow, and Python 3.11 may fail to parse code in two threads at once
    return fitted


@pytest.mark.parametrize("kind", ["gain", "weight", "cover", "total_gain", "total_cover"])
def test_importance_is_that_of_the_booster_under_the_names_of_the_columns(trees, kind):
    data = plotting.importance_data(trees, kind, top=None)
    assert sorted(data["feature"]) == sorted(
        ["noise", "x", "city", "idle", "when_days", "when_hour", "when_weekday", "when_day_of_year"]
    )
    scores = data.set_index("feature")["importance"]
    assert scores[scores > 0].to_dict() == pytest.approx(trees.model_.get_score(importance_type=kind))
    assert scores["idle"] == 0
    assert data["importance"].is_monotonic_decreasing
    assert data.attrs["kind"] == kind


def test_the_most_important_come_first_and_only_so_many(trees):
    assert set(plotting.importance_data(trees, "total_gain", top=3)["feature"]) == {"x", "city", "when_hour"}


def test_importance_of_a_loaded_estimator(trees, tmp_path):
    trees.save(str(tmp_path / "model"))
    loaded = daskdl.load(str(tmp_path / "model"))
    pd.testing.assert_frame_equal(plotting.importance_data(loaded), plotting.importance_data(trees))


def test_importance_is_drawn_with_the_longest_bar_at_the_top(trees):
    import holoviews as hv

    bars = plotting.plot_importance(trees, "total_gain", top=3)
    assert bars.array().tolist() == plotting.importance_data(trees, "total_gain", top=3).to_numpy().tolist()
    figure = hv.render(bars, backend="bokeh")
    assert figure.y_range.factors[::-1] == bars.dimension_values("feature").tolist()  # from the bottom


def test_drawings_beside_each_other_keep_their_own_axes(trees):
    import holoviews as hv

    pair = [plotting.plot_importance(trees, top=top) for top in (2, None)]
    together = hv.renderer("bokeh").get_plot(pair[0] + pair[1])
    for alone, plot in zip(pair, together.subplots.values(), strict=True):
        figure = next(iter(plot.subplots.values())).state
        assert figure.y_range.factors == hv.render(alone, backend="bokeh").y_range.factors


def test_importance_of_a_network_is_refused():
    X = pd.DataFrame({"x": np.arange(40.0)})
    net = daskdl.TorchClassifier(epochs=1, batch_size=32, verbose=0).fit(X, X.x > 20)
    with pytest.raises(TypeError, match="fitted daskdl.XGBClassifier or XGBRegressor; got TorchClassifier"):
        plotting.importance_data(net)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "gains"}, "gain, weight, cover, total_gain, total_cover; got 'gains'"), ({"top": 0}, "at least 1")],
)
def test_unknown_importance_names_the_known_ones(trees, options, message):
    with pytest.raises(ValueError, match=message):
        plotting.importance_data(trees, **options)


def test_importance_before_fit_says_so():
    with pytest.raises(NotFittedError):
        plotting.importance_data(daskdl.XGBClassifier())


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(0)
    labels = rng.choice(["red", "green", "blue"], N)
    centres = {"red": [0, 0, 0, 0, 9], "green": [5, 0, 0, 0, 9], "blue": [0, 3, 0, 0, 9]}
    return np.stack([centres[label] for label in labels]) + rng.normal(0, [1, 0.8, 0.6, 0.4, 0.2], (N, 5)), labels


def test_projection_is_that_of_scikit_learn(embeddings):
    X, _ = embeddings
    pca = PCA(n_components=2, svd_solver="full").fit(X)
    for rows in (X, da.from_array(X, chunks=(400, 2)), dd.from_pandas(pd.DataFrame(X), npartitions=4)):
        data = plotting.embedding_data(rows, points=N)
        assert data.attrs["rows"] == N
        assert data.attrs["explained"] == pytest.approx(pca.explained_variance_ratio_)
        assert np.array(data.attrs["components"]) == pytest.approx(pca.components_)
        found = data[["pc1", "pc2"]].sort_values("pc1").to_numpy()
        expected = pca.transform(X)
        assert found == pytest.approx(expected[expected[:, 0].argsort()])


def test_points_are_bounded_and_keep_their_labels(embeddings):
    X, labels = embeddings
    lazy = dd.from_pandas(pd.DataFrame(X).assign(label=labels), npartitions=5)
    data = plotting.embedding_data(lazy[list(range(5))], lazy["label"], points=300)
    assert len(data) == 300
    means = data.groupby("label")["pc1"].mean()
    assert means["green"] - means["red"] == pytest.approx(5, abs=0.8)
    pd.testing.assert_frame_equal(data, plotting.embedding_data(lazy[list(range(5))], lazy["label"], points=300))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((3, 1)), "2 to 4,096 columns; it has \\(3, 1\\)"),
        (np.zeros((3, 2, 2)), "Flatten"),
        (np.zeros((3, 2)), "X has 3 rows, all the same"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "X holds 1 values that are missing"),
        (np.array([["a", "b"]]), "X must hold numbers; it holds such as"),
    ],
)
def test_what_cannot_be_projected_says_why(X, message):
    with pytest.raises(DataError, match=message):
        plotting.embedding_data(X)


def test_labels_must_be_of_the_same_rows(embeddings):
    X, labels = embeddings
    with pytest.raises(DataError, match="X has 3,000 rows and labels 7"):
        plotting.embedding_data(X, labels[:7])


def test_a_class_is_drawn_as_a_color_and_numbers_on_a_scale(embeddings):
    import holoviews as hv

    X, labels = embeddings
    by_class = plotting.plot_embedding(X, labels, points=200)
    assert sorted(by_class.keys()) == ["blue", "green", "red"]
    assert sum(len(points) for points in by_class) == 200
    on_scale = plotting.plot_embedding(X, X[:, 0], points=200)
    assert isinstance(on_scale, hv.Scatter) and len(on_scale) == 200
    assert len(plotting.plot_embedding(X, points=50)) == 50
    figure = hv.render(by_class, backend="bokeh")
    assert len({renderer.glyph.fill_color for renderer in figure.renderers}) == 3
    assert figure.legend[0].items[0].label.value == "blue"
    assert hv.render(on_scale, backend="bokeh").renderers[0].glyph.fill_color.transform.palette
    many = plotting.plot_embedding(X, np.arange(N) % 15)
    assert len({renderer.glyph.fill_color for renderer in hv.render(many, backend="bokeh").renderers}) == 15
