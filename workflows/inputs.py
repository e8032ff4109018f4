"""What an analysis reads: files and fileset JSON from the command line, checked before anything starts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sonic_parsl.errors import ConfigError, DataError
from sonic_parsl.workflows.rootfile import CORRECT_PATH, LOOK_AT_IT, check_root

TREE = "Events"
EXAMPLE = '{"dataset": ["file.root"]}'


def make_fileset(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return coffea's fileset for ROOT files, and for JSON files that hold one.

    Raises
    ------
    ConfigError, DataError
        A file is missing, is no fileset, or is no NanoAOD.
    """
    _refuse_twice((name, TREE) for name in names if not name.endswith(".json"))
    fileset: dict[str, dict[str, Any]] = {}
    for name in names:
        if name.endswith(".json"):
            _add(fileset, read_fileset(_read_json(Path(name)), name), name)
        else:
            fileset[_unused(Path(name).stem, fileset)] = {"files": {name: TREE}}
    check_files(fileset)
    return fileset


def check_files(fileset: dict[str, dict[str, Any]]) -> None:
    """Check every file of a fileset that is on this machine, and that no dataset has one twice.

    Raises
    ------
    DataError
        One is missing, is no ROOT file, or has not the tree.
    ConfigError
        One is there twice.
    """
    for dataset in fileset.values():
        _refuse_twice(dataset["files"].items())
        for file, tree in dataset["files"].items():
            if "://" not in file:
                check_root(file, tree)


def _refuse_twice(named: Iterable[tuple[str, str]]) -> None:
    """Refuse a tree that is named twice, under whatever name: its events would count twice."""
    first: dict[tuple[str, str], str] = {}
    for file, tree in named:
        key = (file if "://" in file else os.path.realpath(file), tree)
        if file and key in first:  # an empty name is refused later
            name = file if file == first[key] else f"{first[key]} and {file} are one file, which"
            raise ConfigError(f"{name} is named twice; its events would count twice.", hint="Leave one of them out.")
        first[key] = file


def _add(fileset: dict[str, dict[str, Any]], more: dict[str, dict[str, Any]], source: str) -> None:
    twice = sorted(fileset.keys() & more.keys())
    if twice:
        raise ConfigError(f"{source}: dataset {', '.join(twice)} was named before.", hint="Give it another name.")
    fileset.update(more)


def _unused(stem: str, fileset: dict[str, dict[str, Any]]) -> str:
    number, name = 2, stem
    while name in fileset:
        name, number = f"{stem}-{number}", number + 1
    return name


def read_fileset(data: Any, source: str) -> dict[str, dict[str, Any]]:
    """Bring a fileset in any form that coffea takes to one form; metadata is kept.

    Parameters
    ----------
    source
        Where it is from, for the message.

    Raises
    ------
    ConfigError
        It is no fileset.
    """
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{source} is not a fileset.", hint=f"It should look like {EXAMPLE}.")
    return {str(name): _dataset(source, name, entry) for name, entry in data.items()}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        hint = LOOK_AT_IT if path.exists() else CORRECT_PATH
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint=hint) from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply.", hint=f"It should look like {EXAMPLE}.") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.", hint=f"It should look like {EXAMPLE}.") from None


def _dataset(source: str, name: Any, entry: Any) -> dict[str, Any]:
    entry = entry if isinstance(entry, dict) else {"files": entry}
    files, tree = entry.get("files"), entry.get("treename") or TREE
    if isinstance(files, list):
        _refuse_twice([(str(file), tree) for file in files])
        files = dict.fromkeys(map(str, files), tree)
    if not isinstance(files, dict) or not files:
        raise ConfigError(f"{source}: dataset {name} names no files.", hint=f"Write {EXAMPLE}.")
    metadata = entry.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ConfigError(
            f"{source}: metadata of dataset {name} is {metadata!r}; it should be a mapping.",
            hint='Write {"dataset": {"files": ["file.root"], "metadata": {"xsec": 832.0}}}.',
        )
    for file, value in files.items():
        if isinstance(value, dict) and value.get("steps"):
            raise ConfigError(
                f"{source}: {file} of dataset {name} has steps, and only whole files are read.",
                hint="Leave the steps out; --chunksize says how many events are read at once.",
            )
    trees = {str(file): _tree(value, tree) for file, value in files.items()}
    return {"files": trees, **({"metadata": metadata} if metadata else {})}


def _tree(value: Any, default: str) -> str:
    return str((value.get("object_path") if isinstance(value, dict) else value) or default)
