"""What a user gives, on its way to the workers and back: by value, with the code that this process has now.

Dask, left alone, sends a function of a module as the module's name: a worker then runs what it has imported once, or
has no such module; and modules of PyTorch are sent attribute by attribute, without their ``__getstate__``, and with
tied weights apart. Here code of the user's own modules, which are not installed, goes along.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import pickle
import site
import sys
import sysconfig
import threading
import types
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import cloudpickle
from distributed import Client, Future

from daskdl.codewalk import imported_in
from daskdl.errors import CannotTravel

# what a process makes for itself when it imports a module, so that a copy of the module has its own
_FRESH: dict[type, Any] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
    threading.local: threading.local,
    threading.Event: threading.Event,
    threading.Condition: threading.Condition,
    ContextVar: ContextVar,
}
_OF_A_PROCESS = ("__builtins__", "__cached__", "__loader__", "__spec__")  # of a module, and no part of its code
_packing = threading.RLock()  # cloudpickle's list of modules is one for all threads
_process = (0, "")  # id of this process, and a name that no other has


@dataclass(frozen=True)
class Packed:
    """Objects as bytes, which any process with daskdl can open.

    Attributes
    ----------
    data : bytes
    futures : list of distributed.Future
        That were found among them; their results take their places. Give them to the task that opens this.
    process : str
        That packed them.
    """

    data: bytes
    futures: list[Any] = field(default_factory=list)
    process: str = ""

    def open(self, found: Sequence[Any] = (), home: bool = False) -> Any:
        """Make the objects again.

        Parameters
        ----------
        found : sequence
            Results of ``futures``.
        home : bool
            Whether they come back to who sent their classes: those it has stay as they are.
        """
        home = home or self.process == this_process()
        thing, modules = _Opener(self.data, found, home).load()
        # what functions import when they are called; at home there may be another version, which is not touched
        sys.modules.update({n: m for n, m in modules.items() if n not in sys.modules} if home else modules)
        return thing

    @functools.cached_property
    def value(self) -> Any:
        """The objects, made once in this process."""
        return self.open()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what the futures are for: Dask hands their results to the task."""
        return {"data": self.data, "futures": [], "process": self.process}


def pack(thing: Any, what: str = "it", to: str = "to the workers", most: int | None = None) -> Packed:
    """Pack objects: those of the user's own modules by value, all others as pickle does.

    Parameters
    ----------
    what : str
        What they are, for the error; and where ``to`` they are sent.
    most : int, optional
        Bytes that it may come to.

    Raises
    ------
    CannotTravel
        Something in it belongs to this process; the message says what, and where it is held.
    OverflowError
        It comes to more than ``most``.

    Examples
    --------
    >>> pack([1, 2]).open()
    [1, 2]
    """
    try:
        return _packed(thing, most)
    except OverflowError:
        raise
    except Exception as error:  # of any class: it is the user's own objects
        from daskdl.codewalk import culprit

        where = culprit(thing, _packed)
        where = f"{what}{where}" if where[:1] in (".", "[", "") else where
        raise CannotTravel(
            f"{what} cannot be sent {to}: {error}. What it uses from outside travels with it, and {where} belongs to "
            "this process. Make locks, files, connections, clients and generators where they are used: inside the "
            "function, or at the first call."
        ) from error


class _Bounded(io.BytesIO):
    """Memory that takes so much and no more."""

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self.most = most

    def write(self, data: Any) -> int:
        if self.most is not None and self.tell() + memoryview(data).nbytes > self.most:
            raise OverflowError(f"more than {self.most:,} bytes")
        return super().write(data)


def _packed(thing: Any, most: int | None = None) -> Packed:
    modules: dict[str, types.ModuleType] = {}
    while True:
        file = _Bounded(most)
        with by_value() as mine:
            packer = _Packer(file, mine)
            packer.dump((thing, modules))
        if packer.imports.keys() <= modules.keys():
            return Packed(file.getvalue(), packer.futures, this_process())
        modules = {**modules, **packer.imports}


def submit(client: Client, function: Callable[..., Any], *args: Any, **options: Any) -> Future:
    """Submit a call of a function of daskdl's, whose ``Packed`` arguments arrive opened."""
    futures = [arg.futures if isinstance(arg, Packed) else [] for arg in args]
    options = {"key": f"{function.__name__}-{uuid.uuid4().hex}", **options}
    return client.submit(_opened, function, futures, *args, pure=False, **options)


def _opened(function: Callable[..., Any], found: Sequence[Any], *args: Any) -> Any:
    """Runs in a worker; what was a future is its result."""
    return function(*(a.open(f) if isinstance(a, Packed) else a for a, f in zip(args, found, strict=True)))


def this_process() -> str:
    """Name of this process; one that was forked has its own."""
    global _process
    if _process[0] != os.getpid():
        _process = os.getpid(), uuid.uuid4().hex
    return _process[1]


# -- which modules are the user's own ---------------------------------------------------------------------------------


def users_modules() -> dict[str, types.ModuleType]:
    """The modules of this process that are files of the user's, by name: neither installed nor part of Python.

    A package with compiled parts is none of them, as these cannot go by value.
    """
    files = {
        name: str(module.__dict__.get("__file__") or "")
        for name, module in sys.modules.copy().items()
        if isinstance(module, types.ModuleType) and module.__dict__.get("__name__") == name
    }
    compiled = {name.partition(".")[0] for name, file in files.items() if file.endswith(tuple(EXTENSION_SUFFIXES))}
    return {
        name: sys.modules[name]
        for name, file in files.items()
        if file and name != "__mp_main__" and name.partition(".")[0] not in compiled and not _is_installed(file)
    }


@functools.cache
def _roots() -> tuple[str, ...]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parent)]
    return tuple({f"{place}{os.sep}" for path in paths for place in (path, os.path.realpath(path))})


@functools.cache
def _is_installed(file: str) -> bool:
    inside = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return bool(inside) or file.startswith(("<", *_roots())) or os.path.realpath(file).startswith(_roots())


@contextmanager
def by_value() -> Iterator[dict[str, types.ModuleType]]:
    """Have cloudpickle send what is in the user's modules by value, for the duration of a block."""
    mine = {name: module for name, module in users_modules().items() if name != "__main__"}
    with _packing:
        known = cloudpickle.list_registry_pickle_by_value()
        added = [module for name, module in mine.items() if name not in known]
        try:
            for module in added:
                cloudpickle.register_pickle_by_value(module)
            yield mine
        finally:
            for module in added:
                if module.__name__ in cloudpickle.list_registry_pickle_by_value():
                    cloudpickle.unregister_pickle_by_value(module)


# -- packing ----------------------------------------------------------------------------------------------------------


class _Packer(cloudpickle.Pickler):
    """Adds to cloudpickle what a module of a user's may hold, and notes what its functions import when they run."""

    def __init__(self, file: Any, mine: dict[str, types.ModuleType]) -> None:
        super().__init__(file, protocol=5)
        self.mine, self.futures, self.imports = mine, [], {}  # type: ignore[var-annotated]
        self._globals: set[int] = set()  # what lies in modules that go by value, and a process makes for itself
        self._storages: dict[int, Any] = {}

    def reducer_override(self, obj: Any) -> Any:
        """Say how an object is made again, or leave it to cloudpickle."""
        kind = type(obj)
        if kind is types.FunctionType:
            return self._function(obj)
        if kind is types.ModuleType and (obj.__name__ in self.mine or sys.modules.get(obj.__name__) is not obj):
            state = {name: value for name, value in vars(obj).items() if name not in _OF_A_PROCESS}
            self._globals |= {id(value) for value in state.values() if type(value) in _FRESH}
            return types.ModuleType, (obj.__name__,), state  # the state comes after it is known: modules form circles
        if isinstance(obj, Future):
            self.futures.append(obj)
            return _future, (len(self.futures) - 1,)
        if kind is functools._lru_cache_wrapper and not self._is_there(obj):
            return _cached, (obj.__wrapped__, obj.cache_parameters())
        if id(obj) in self._globals:
            return _FRESH[kind], (obj.name,) if kind is ContextVar else ()
        if "torch" in sys.modules and (reduced := self._of_torch(obj)) is not None:
            return reduced
        return super().reducer_override(obj)

    def _function(self, function: types.FunctionType) -> Any:
        reduced = super().reducer_override(function)
        if reduced is not NotImplemented:
            self.imports |= imported_in(function, self.mine, _is_installed)
            self._globals |= {id(value) for value in list(function.__globals__.values()) if type(value) in _FRESH}
        return reduced

    def _is_there(self, obj: Any) -> bool:
        """Whether another process finds an object under its name, in a module that is installed."""
        module = sys.modules.get(obj.__module__)
        return obj.__module__ not in self.mine and getattr(module, obj.__qualname__, None) is obj

    def _of_torch(self, obj: Any) -> Any:
        import torch

        if isinstance(obj, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            file = io.BytesIO()
            torch.jit.save(obj, file)
            return _script, (file.getvalue(), getattr(obj, "training", None))
        if isinstance(obj, torch.nn.Module) and torch.nn.utils.parametrize.is_parametrized(obj):
            names = list(obj.parametrizations)  # type: ignore[arg-type]
            return _parametrized, (type(obj).__bases__[0], names), vars(obj)
        if type(obj) is torch.storage.TypedStorage:  # made anew for every tensor: those that share one would not
            first = self._storages.setdefault(obj._untyped_storage._cdata, obj)
            return (_same, (first,)) if first is not obj else None
        return None


def _future(number: int) -> Any:
    raise RuntimeError(f"the result of future {number} was not given")  # see _Opener


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _script(data: bytes, training: bool | None) -> Any:
    import torch

    module = torch.jit.load(io.BytesIO(data))
    return module if training is None else module.train(training)


def _parametrized(cls: Any, names: list[str]) -> Any:
    """Make an empty module of the class that torch makes for one with parametrizations."""
    from torch.nn.utils import parametrize

    module = cls.__new__(cls)
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    return module


def _same(thing: Any) -> Any:
    return thing


# -- opening ----------------------------------------------------------------------------------------------------------


class _Opener(pickle.Unpickler):
    """Opens what was packed; at home, classes that this process has are not made again, and not changed."""

    def __init__(self, data: bytes, found: Sequence[Any], home: bool, buffers: Sequence[Any] | None = None) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._found, self._home = found, home
        self._own: list[type] = []

    def find_class(self, module: str, name: str) -> Any:
        """Find what pickle asks for by name."""
        if (module, name) == (__name__, _future.__name__):
            return self._found.__getitem__
        found = super().find_class(module, name)
        if self._home and module == "cloudpickle.cloudpickle":
            return {
                "_make_skeleton_class": functools.partial(self._make, found, 4),
                "_make_skeleton_enum": functools.partial(self._make, found, 5),
                "_class_setstate": functools.partial(self._set, found),
            }.get(name, found)
        return found

    def _make(self, make: Callable[..., type], at: int, *args: Any) -> type:
        """Make a class, or find it: by the number that cloudpickle gave it here, or by its name in a later session."""
        known = args[at] in getattr(cloudpickle.cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_ID", {})
        name, module = args[1], args[4] if at == 5 else args[3].get("__module__", "")
        named = None if known else _named(module, name)
        cls = make(*args) if named is None else named
        if known or named is not None:
            self._own.append(cls)
        return cls

    def _set(self, setstate: Callable[..., Any], cls: type, state: Any) -> Any:
        return cls if any(cls is own for own in self._own) else setstate(cls, state)


def opened(data: bytes, buffers: Sequence[Any], process: str) -> Any:
    """Open a pickle that was made in ``by_value`` in a process, with the arrays that lie beside it."""
    return _Opener(data, (), process == this_process(), buffers).load()


def _named(module: str, name: str) -> type | None:
    """The class that a module has under a name, if it can be imported here."""
    if module in ("", "__main__"):
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception:  # of any class: to import it is to run it
        return None
    return found if isinstance(found, type) and found.__qualname__ == name else None
