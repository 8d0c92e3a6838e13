import pytest

from daskdl.tracking import folder


@pytest.fixture(scope="session")
def client():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def session_root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("session") / "runs")


@pytest.fixture
def root(session_root):
    """The default root while a test runs. One for all of them: making an MLflow file takes seconds."""
    folder.set_root(session_root)
    yield session_root
    folder.set_root(None)
