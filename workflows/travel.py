"""Can a processor be sent to workers? If not, which part of it cannot, said before anything starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import cloudpickle
from coffea.processor import ProcessorABC

from sonic_parsl.errors import AnalysisError

CODE = (type, FunctionType, ModuleType, classmethod, staticmethod, property, ProcessorABC)
DEPTH = 4
"""An attribute of an attribute of ...: deeper than this the outer one is named."""


def check_travels(processor: ProcessorABC) -> None:
    """Pickle a processor as coffea does to send it to workers.

    Raises
    ------
    AnalysisError
        It cannot be pickled; the message names the part that cannot.
    """
    reason = _problem(processor)
    if reason is None:
        return
    cls = type(processor)
    where = getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__
    culprit = next(_culprits(processor), None)
    what = f"{culprit}, which cannot be pickled" if culprit else f"it cannot be pickled ({reason})"
    raise AnalysisError(
        f"{cls.__name__} in {where} cannot be sent to workers: {what}.",
        hint="Make it inside process(), where the worker needs it.",
    )


def _problem(value: Any) -> str | None:
    try:
        cloudpickle.dumps(value)
    except Exception as error:  # noqa: BLE001 - an object's own way to be pickled may raise anything
        return f"{type(error).__name__}: {error}"
    return None


def _culprits(processor: ProcessorABC) -> Iterator[str]:
    """Yield what holds something that cannot be pickled: in the object, its classes, its file."""
    for name, value in vars(processor).items():
        if _problem(value):
            yield "its attribute " + "".join(_path(name, value))
    for cls in type(processor).__mro__:
        for name, value in _data(vars(cls)):
            yield f"{cls.__name__}." + "".join(_path(name, value))
    for name, value in _data(vars(sys.modules[type(processor).__module__])):
        yield "the global " + "".join(_path(name, value))


def _data(names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is neither code nor a name of Python's own, and cannot be pickled."""
    for name, value in dict(names).items():
        if not isinstance(value, CODE) and not name.startswith(("__", "_abc_")) and _problem(value):
            yield name, value


def _path(name: str, value: Any, depth: int = DEPTH) -> Iterator[str]:
    """Yield a name, and the names within it, down to what cannot be pickled, and its type at the end."""
    yield name
    for inner, part in _parts(value) if depth else ():
        if _problem(part):
            yield from _path(inner, part, depth - 1)
            return
    module = type(value).__module__
    yield f" is a {'' if module == 'builtins' else f'{module}.'}{type(value).__qualname__}"


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    return [(f".{key}", part) for key, part in getattr(value, "__dict__", {}).items()]
