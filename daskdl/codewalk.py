"""Reading code of the user's: what a function imports when it is called, and what in an object cannot be sent."""

from __future__ import annotations

import dis
import functools
import importlib
import importlib.util
import types
from collections.abc import Callable, Iterator
from typing import Any

DEPTH = 12  # of a path to what cannot be sent
IMPORT = dis.opmap["IMPORT_NAME"]


def imported_in(
    function: types.FunctionType, known: dict[str, types.ModuleType], is_installed: Callable[[str], bool]
) -> dict[str, types.ModuleType]:
    """Modules of the user's that a function imports when it is called, and the packages they are in, by name."""
    found: dict[str, types.ModuleType] = {}
    for name in _names(function.__code__, str(function.__globals__.get("__package__") or "")):
        module = known.get(name) or _users(name, is_installed)
        if module is not None:
            found[name] = module
            parents = [name[:at] for at, letter in enumerate(name) if letter == "."]
            found |= {parent: known[parent] for parent in parents if parent in known}
    return found


def _names(code: types.CodeType, package: str) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant, package)
    if IMPORT not in code.co_code[::2]:
        return
    before: list[Any] = [None, None]  # the level of an import and the names that are taken from it
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            level, taken = before[0], before[1] or ()
            dotted = "." * level if isinstance(level, int) else ""
            try:
                name = importlib.util.resolve_name(f"{dotted}{instruction.argval}", package)
            except ImportError:  # it will fail there as it would here
                continue
            yield name
            yield from (f"{name}.{part}" for part in taken if part != "*")
        elif instruction.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            before = [before[1], instruction.argval]


@functools.cache
def _is_users(name: str, is_installed: Callable[[str], bool]) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):  # a name that is taken from a module need not be one
        return False
    return spec is not None and bool(spec.has_location) and spec.origin is not None and not is_installed(spec.origin)


def _users(name: str, is_installed: Callable[[str], bool]) -> types.ModuleType | None:
    if name.partition(".")[0] in ("__main__", "daskdl") or not _is_users(name, is_installed):
        return None
    try:
        return importlib.import_module(name)
    except Exception:  # of any class: to import it is to run it
        return None


def culprit(thing: Any, travels: Callable[[Any], Any], depth: int = DEPTH) -> str:
    """Say in words where in an object that cannot be sent the reason lies: ``module.encoder.lock``."""
    for name, part in _parts(thing) if depth else ():
        try:
            travels(part)
        except Exception:  # of any class
            inner = culprit(part, travels, depth - 1)
            between = ": " if name and inner and inner[0] not in ".[" else ""
            return f"{name}{between}{inner}"
    return ""


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, types.FunctionType):
        cells = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
        used = {name for code in _codes(thing.__code__) for name in code.co_names}
        yield from ((f"variable {n} of {thing.__name__}()", c.cell_contents) for n, c in cells if c != types.CellType())
        where = "your notebook or script" if thing.__module__ == "__main__" else f"module {thing.__module__}"
        yield from ((f"{n} of {where}", thing.__globals__[n]) for n in sorted(used & thing.__globals__.keys()))
    elif isinstance(thing, types.MethodType):
        yield "", thing.__self__
    elif isinstance(thing, functools.partial):
        yield from (("", part) for part in (thing.func, *thing.args, *thing.keywords.values()))
    elif isinstance(thing, dict):
        yield from ((f"[{key!r}]", value) for key, value in thing.items())
    elif isinstance(thing, (list, tuple)):
        yield from (("", part) for part in thing)
    elif isinstance(thing, type):
        yield from ((f"{thing.__name__}.{n}", v) for n, v in vars(thing).items() if isinstance(v, types.FunctionType))
    elif isinstance(thing, types.ModuleType):
        yield from ((f"{n} of module {thing.__name__}", v) for n, v in vars(thing).items() if not n.startswith("__"))
    elif isinstance(getattr(thing, "__dict__", None), dict):
        yield "", type(thing)
        for name, part in vars(thing).items():
            inside = name in ("_modules", "_parameters", "_buffers") and isinstance(part, dict)  # of a torch.nn.Module
            yield from ((f".{n}", value) for n, value in (part.items() if inside else [(name, part)]))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
