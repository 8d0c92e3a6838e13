"""Where it runs: ``connect()`` and the clusters it starts."""

from daskdl.cluster.connection import connect

__all__ = ["connect"]
