"""Objects as they were at one moment, to be sent and copied whatever happens to them later."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from typing import Any

import cloudpickle

from daskdl.errors import DataError
from daskdl.travel import by_value, opened, this_process

DEEPEST = 4  # attributes of attributes, searched for what cannot be pickled


@dataclass(frozen=True, eq=False)
class Frozen:
    """The pickle of an object. Arrays lie beside it and are shared with the object and among its copies.

    Attributes
    ----------
    data : bytes
    buffers : list of buffers
        What arrays and tensors hold.
    process : str
        That froze it, see ``travel``: classes that come back to it are its own.

    Examples
    --------
    >>> frozen = Frozen.of({"path": "rows.bin"})
    >>> frozen.thaw()
    {'path': 'rows.bin'}
    """

    data: bytes
    buffers: list[Any]
    process: str

    @classmethod
    def of(cls, thing: Any) -> Frozen:
        """Freeze an object.

        Raises
        ------
        DataError
            It cannot be pickled; the message names the attribute.
        """
        out, buffers = io.BytesIO(), []  # type: ignore[var-annotated]
        try:
            with by_value():
                _Sender(out, protocol=5, buffer_callback=buffers.append).dump(thing)
        except Exception as error:
            name = type(thing).__qualname__
            raise DataError(
                f"{name} cannot be pickled{_because(thing)}: {error}. It goes to the workers, which read its rows. If "
                f"it opens a file at its first read, give it as it is before that: DatasetSource({name}(...)). Else "
                "keep paths in it, and open files, connections and generators in __getitem__."
            ) from error
        return cls(out.getvalue(), buffers, this_process())

    def thaw(self) -> Any:
        """Make a copy of the object as it was."""
        return opened(self.data, self.buffers, self.process)

    def __getstate__(self) -> dict[str, Any]:
        buffers = [pickle.PickleBuffer(buffer) for buffer in self.buffers]
        return {"data": self.data, "buffers": buffers, "process": self.process}


def _because(thing: Any) -> str:
    """Name the attribute that cannot be pickled, if it is one."""
    names: list[str] = []
    while len(names) < DEEPEST:
        found = next(((n, v) for n, v in getattr(thing, "__dict__", {}).items() if not _is_sendable(v)), None)
        if found is None:
            break
        names.append(found[0])
        thing = found[1]
    return f", for its attribute {'.'.join(names)} is a {type(thing).__qualname__}" if names else ""


def _is_sendable(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True


def _is_tensor(obj: Any) -> bool:
    return hasattr(obj, "detach") and hasattr(obj, "numpy")


class _Sender(cloudpickle.Pickler):
    """Pickles tensors as arrays, whose content need not be copied; torch's own way writes it into the pickle."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj).__module__ == "torch" and type(obj).__name__ == "Tensor" and not obj.requires_grad:
            try:
                return _as_tensor, (obj.numpy(),)
            except (TypeError, RuntimeError):  # on a GPU, sparse, or of a type that numpy has not
                return NotImplemented
        return super().reducer_override(obj)


def _as_tensor(array: Any) -> Any:
    import torch

    return torch.from_numpy(array)


# -- fingerprint --------------------------------------------------------------------------------------------------


def content_of(thing: Any) -> str:
    """Digest of what an object holds: the same in every process for the same content.

    Raises
    ------
    DataError
        It cannot be pickled.
    """
    out = _Digest()
    try:
        _Pickler(out, protocol=5).dump(thing)
    except Exception:
        Frozen.of(thing)  # says what is wrong
        raise
    return out.digest.hexdigest()


class _Digest:
    """A file that keeps nothing of what is written but its digest."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return memoryview(data).nbytes  # large arrays come as buffers


def _stands_for(*facts: Any) -> None:
    """Be called where something is left out of a pickle that is never loaded."""


class _Pickler(cloudpickle.Pickler):
    """Pickles for the digest only: alike in every process, which tensors and classes of a notebook are not."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type):
            return _stands_for, (f"{obj.__module__}.{obj.__qualname__}",)
        if _is_tensor(obj):  # torch writes the address of a tensor's storage
            values = obj.detach().cpu()
            values = values.float() if "bfloat16" in str(values.dtype) else values  # numpy has none
            return _stands_for, (str(obj.dtype), values.numpy())
        return super().reducer_override(obj)
