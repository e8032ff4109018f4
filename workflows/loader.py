"""Find an analysis: a packaged workflow by its name, or the user's own file."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from coffea.nanoevents import NanoAODSchema
from coffea.processor import ProcessorABC

from sonic_parsl.errors import ConfigError

Fileset = dict[str, dict[str, Any]]
PREFIX = "analysis_"
"""Before the name of a user's file as a module, so that ``hist.py`` is not taken for the library."""


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
        There is none, it cannot be imported, or it holds no processor.
    """
    path = Path(name)
    module = _from_file(path) if path.suffix == ".py" else _packaged(name)
    models = getattr(module, "models", None)
    return Workflow(
        name=path.stem,
        processor=_processor(module),
        schema=getattr(module, "schema", NanoAODSchema),
        models=None if models is None else Path(module.__file__ or ".").parent / models,
        fileset=getattr(module, "fileset", None),
        draw=getattr(module, "draw", None),
    )


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
        raise ConfigError(f"There is no analysis file {path}.")
    name = f"{PREFIX}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        del sys.modules[name]
        text = "".join(traceback.format_exception_only(error)).strip()
        raise ConfigError(f"{path} cannot be imported{_line(error, path)}: {text}.") from None
    # Workers cannot import the user's file: it travels with the processor.
    cloudpickle.register_pickle_by_value(module)
    return module


def _line(error: Exception, path: Path) -> str:
    here = str(path.absolute())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == here]
    return f", line {lines[-1]}" if lines else ""


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
    try:
        return classes[0]()
    except TypeError as error:
        raise ConfigError(
            f"{classes[0].__name__} in {module.__file__} cannot be made without arguments: {error}.",
            hint="Make it in the file: `processor = MyProcessor(...)`.",
        ) from None
