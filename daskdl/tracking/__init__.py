"""Runs: what an experiment said and what is left of it, live in memory, in MLflow and in a folder."""
