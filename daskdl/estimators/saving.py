"""Estimators as folders: JSON, and the model in a format of its own, so that nothing is pickled or unpickled."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import Any

import fsspec

from daskdl.estimators.plain import from_json, to_json

FORMAT = 2  # 1 had the model in "model"
ABOUT = "estimator.json"  # written last: it alone makes a saved estimator
KNOWN = ("TorchClassifier", "TorchRegressor", "XGBClassifier", "XGBRegressor", "XGBRanker")


def params_of(estimator: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters as JSON, and those that it cannot hold, as text."""
    held, left = {}, {}
    for name, value in estimator.get_params(deep=False).items():
        try:
            held[name] = to_json(value)
        except TypeError:
            left[name] = repr(value)[:200]
    return held, left


def described(estimator: Any) -> dict[str, Any]:
    """Say in plain values what an estimator is, but for its model.

    Raises
    ------
    TypeError
        Its schema holds code, such as a tokenizer of the user's own.
    """
    held, left = params_of(estimator)
    return {
        "format": FORMAT,
        "estimator": type(estimator).__name__,
        "params": held,
        "left_out": left,
        "schema": to_json(estimator.schema_.to_dict()),
        "target": to_json(estimator.target_.to_dict()),
        "named": hasattr(estimator, "feature_names_in_"),
    }


def save(estimator: Any, path: str) -> None:
    """Write a fitted estimator; see ``DaskEstimator.save``."""
    model = estimator._model_bytes()
    file = f"model-{hashlib.sha256(model).hexdigest()[:12]}"
    # all there is to write is there before anything is written
    text = json.dumps({**described(estimator), "model": to_json(estimator._model_notes()), "file": file}, indent=1)
    fs, folder = fsspec.core.url_to_fs(path)
    before = _files(fs, folder)
    if before and ABOUT not in before:
        raise FileExistsError(
            f"{path} is not empty, and no saved estimator: it has {', '.join(before[:5])}. Give a folder of its own, "
            f"such as {path.rstrip('/')}/model."
        )
    existed = fs.exists(folder)
    fs.makedirs(folder, exist_ok=True)
    written = [name for name in (file, f"{ABOUT}.part") if name not in before]
    try:
        with fs.open(f"{folder}/{file}", "wb") as out:
            out.write(model)
        with fs.open(f"{folder}/{ABOUT}.part", "w") as out:
            out.write(text)
        fs.mv(f"{folder}/{ABOUT}.part", f"{folder}/{ABOUT}")  # who reads meanwhile finds the one before, or this one
    except BaseException:
        for name in written:
            with suppress(OSError):
                fs.rm(f"{folder}/{name}")
        with suppress(OSError):
            if not existed:
                fs.rmdir(folder)
        raise
    for name in before:
        if name.startswith("model") and name != file:
            with suppress(OSError):
                fs.rm(f"{folder}/{name}")


def _files(fs: Any, folder: str) -> list[str]:
    try:
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(folder, detail=False))
    except FileNotFoundError:
        return []


def load(path: str, **params: Any) -> Any:
    """Read an estimator that ``save`` wrote. Nothing is unpickled.

    Parameters
    ----------
    path : str
        Folder, local or any fsspec URL.
    **params
        Parameters that a file cannot hold, such as ``module=`` for a network of your own. What is missing is named.

    Raises
    ------
    ValueError
        The folder holds no estimator, or one of a newer format; a parameter that a file cannot hold was not given, or
        is a module with other layers than the one that was trained.
    TypeError
        There is no such parameter.
    """
    import daskdl

    fs, folder = fsspec.core.url_to_fs(path)
    about = _about(fs, folder, path)
    if about["format"] not in (1, FORMAT):
        raise ValueError(
            f"{path} was saved in format {about['format']}, this daskdl reads format {FORMAT}. Upgrade daskdl."
        )
    if about["estimator"] not in KNOWN:
        raise ValueError(f"{path} holds a {about['estimator']!r}; known are {', '.join(KNOWN)}")
    cls = getattr(daskdl, about["estimator"])
    given = {**{name: from_json(value) for name, value in about["params"].items()}, **params}
    if unknown := given.keys() - set(cls._get_param_names()):
        raise TypeError(
            f"{about['estimator']} has no parameters {', '.join(sorted(unknown))}. Those that {path} holds are "
            f"{', '.join(about['params'])}: one that this daskdl does not know was saved by another version."
        )
    if missing := {name: text for name, text in about.get("left_out", {}).items() if name not in params}:
        raise ValueError(
            f"{path} was saved with {' and '.join(f'{name}={text}' for name, text in missing.items())}, and a file of "
            f"plain values and weights holds no code. Pass {'it' if len(missing) == 1 else 'them'}: "
            f"daskdl.load(path, {', '.join('module=net' if name == 'module' else f'{name}=...' for name in missing)})."
        )
    name = about.get("file", "model")
    if not fs.exists(f"{folder}/{name}"):
        raise ValueError(f"{path} holds an {ABOUT} but not its model, {name}: it was copied or removed in part.")
    with fs.open(f"{folder}/{name}", "rb") as file:
        return cls(**given)._restore({**about, "model": from_json(about["model"])}, file.read())


def _about(fs: Any, folder: str, path: str) -> dict[str, Any]:
    if not fs.exists(f"{folder}/{ABOUT}"):
        raise ValueError(f"{path} holds no saved estimator: there is no {ABOUT} in it. Give the folder of save().")
    with fs.open(f"{folder}/{ABOUT}") as file:
        try:
            about = json.load(file)
            return {**about, "schema": from_json(about["schema"]), "target": from_json(about["target"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{ABOUT} of {path} is damaged ({error}). Save the estimator again.") from error
