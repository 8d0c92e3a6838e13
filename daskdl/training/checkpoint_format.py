"""What goes into the file of a checkpoint: plain values and tensors only, summed up as they are written."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

CHUNK_BYTES = 8 << 20
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def plain_state(value: Any, where: str = "state") -> Any:
    """Rebuild a state of dicts, lists, tuples, sets, tensors and plain values only; tensors share their memory."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in _PLAIN:
        return value
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {
            plain_state(key, f"a key of {where}"): plain_state(item, f"{where}[{key!r}]") for key, item in value.items()
        }
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(plain_state(item, f"{where}[{i}]") for i, item in enumerate(value))
    raise TypeError(
        f"{where} is a {type(value).__name__}; a checkpoint takes tensors, numbers, strings, None, and dicts, lists, "
        "tuples and sets of them, since to read anything else could run code. Let its state_dict() return those "
        "(arrays as tensors), or do not keep it"
    )


class Tee:
    """What ``torch.save`` writes to: hands on in pieces, adds up size and checksum, so no second copy is held.

    An error is kept, not raised: torch's writer would hide it behind one of its own.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.n_bytes, self.sha256 = 0, hashlib.sha256()
        self.error: Exception | None = None

    def write(self, data: Any) -> int:
        """Hand on, unless an error came before."""
        view = memoryview(data).cast("B")
        try:
            for start in range(0, 0 if self.error else len(view), CHUNK_BYTES):
                piece = view[start : start + CHUNK_BYTES]
                self._file.write(piece)
                self.sha256.update(piece)
        except Exception as error:
            self.error = error
        self.n_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Leave it to the end."""
