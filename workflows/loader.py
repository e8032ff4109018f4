"""Find an analysis: a packaged workflow by its name, or the user's own file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import reprlib
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from coffea.nanoevents import BaseSchema, NanoAODSchema
from coffea.processor import ProcessorABC

from sonic_parsl.errors import ConfigError
from sonic_parsl.workflows.travel import check_travels

Fileset = dict[str, dict[str, Any]]
PREFIX = "analysis_"
"""Before the name of a user's file as a module, so that ``hist.py`` is not taken for the library."""
EXITS = "It ends Python: leave that out, or put it under `if __name__ == '__main__':`."


@dataclass(frozen=True)
class Workflow:
    """An analysis, as a Python file describes it.

    Attributes
    ----------
    name
        Name of the file, without its ending.
    processor
        What runs on each chunk: ``processor`` in the file, else the one ProcessorABC class it defines.
    schema
        How branches become events: ``schema`` in the file, else NanoAODSchema.
    models
        Model repository for servers: ``models`` in the file; None where the site file names one.
    fileset
        Input where the command line names none: the function ``fileset`` in the file, or None.
    draw
        The function ``draw(output, folder) -> list of files`` in the file, or None.
    """

    name: str
    processor: ProcessorABC
    schema: type
    models: Path | None
    fileset: Callable[[], Fileset] | None
    draw: Callable[[Any, Path], list[Path]] | None


def load(name: str) -> Workflow:
    """Return the packaged workflow `name`, or the one in the file `name`.

    Raises
    ------
    ConfigError
        There is none, it cannot be imported, it holds no processor, or something else in it is not what it should be.
    AnalysisError
        The processor cannot be sent to workers.
    """
    path = Path(name)
    module = _from_file(path) if path.suffix == ".py" else _packaged(name)
    models = _optional(module, "models", lambda value: isinstance(value, str | Path), "the path of a folder")
    workflow = Workflow(
        name=path.stem,
        processor=_processor(module),
        schema=_optional(module, "schema", _is_schema, "a class of coffea.nanoevents") or NanoAODSchema,
        models=None if models is None else Path(module.__file__ or ".").parent / models,
        fileset=_optional(module, "fileset", callable, "a function"),
        draw=_optional(module, "draw", callable, "a function"),
    )
    check_travels(workflow.processor)
    return workflow


def packaged_names() -> list[str]:
    """Return the names of the workflows that come with sonic-parsl."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [path.stem for path in files if re.search(r"^class \w+\(ProcessorABC\)", path.read_text(), re.MULTILINE)]


def _packaged(name: str) -> ModuleType:
    if name not in packaged_names():
        raise ConfigError(
            f"There is no workflow '{name}'.",
            hint=f"Give the path of a Python file, or one of: {', '.join(packaged_names())}.",
        )
    return importlib.import_module(f"sonic_parsl.workflows.{name}")


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(
            f"There is no analysis file {path}.",
            hint=f"Correct the path, or name a packaged workflow: {', '.join(packaged_names())}.",
        )
    name = f"{PREFIX}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        del sys.modules[name]
        text = "".join(traceback.format_exception_only(error)).strip()
        raise ConfigError(f"{path} cannot be imported{_line(error, path)}: {text}.", hint=_way_out(error)) from None
    # Workers cannot import the user's file: it travels with the processor.
    cloudpickle.register_pickle_by_value(module)
    return module


def _line(error: BaseException, path: Path) -> str:
    here = str(path.absolute())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == here]
    return f", line {lines[-1]}" if lines else ""


def _way_out(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "Install it where driver and workers run, or name its folder in PYTHONPATH."
    if isinstance(error, SystemExit):
        return EXITS
    return ""


def _optional(module: ModuleType, name: str, is_right: Callable[[Any], bool], what: str) -> Any:
    """Return what a file says of something it need not say; None where it does not."""
    value = getattr(module, name, None)
    if value is not None and not is_right(value):
        raise ConfigError(f"{name} in {module.__file__} is {reprlib.repr(value)}; it should be {what}.")
    return value


def _is_schema(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseSchema)


def _processor(module: ModuleType) -> ProcessorABC:
    given = getattr(module, "processor", None)
    if isinstance(given, ProcessorABC):
        return given
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ProcessorABC) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        found = ", ".join(cls.__name__ for cls in classes) or "none"
        raise ConfigError(
            f"{module.__file__} should define one ProcessorABC class, found: {found}.",
            hint="Say which one with a line such as `processor = MyProcessor()`.",
        )
    return _made(classes[0], module)


def _made(cls: type[ProcessorABC], module: ModuleType) -> ProcessorABC:
    if inspect.isabstract(cls):
        absent = " and ".join(sorted(cls.__abstractmethods__))
        raise ConfigError(f"{cls.__name__} in {module.__file__} does not define {absent}.", hint="Add what is missing.")
    try:
        return cls()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        text = "".join(traceback.format_exception_only(error)).strip().removeprefix("TypeError: ")
        line = _line(error, Path(module.__file__ or ""))
        raise ConfigError(
            f"{cls.__name__} in {module.__file__} cannot be made without arguments{line}: {text}.",
            hint=_way_out(error) or "Make it in the file: `processor = MyProcessor(...)`.",
        ) from None
