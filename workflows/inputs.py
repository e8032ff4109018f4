"""What an analysis reads: files and fileset JSON from the command line, checked before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uproot

from sonic_parsl.errors import ConfigError, DataError

TREE = "Events"


def make_fileset(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return coffea's fileset for ROOT files, and for JSON files that hold one.

    Raises
    ------
    ConfigError, DataError
        A file is missing, is no fileset, or is no NanoAOD.
    """
    fileset: dict[str, dict[str, Any]] = {}
    for name in names:
        if name.endswith(".json"):
            _add(fileset, _read_fileset(Path(name)), name)
        else:
            fileset[_unused(Path(name).stem, fileset)] = {"files": {name: TREE}}
    for dataset in fileset.values():
        for file, tree in dataset["files"].items():
            if "://" not in file:
                _check_root(file, tree)
    return fileset


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


def _read_fileset(path: Path) -> dict[str, dict[str, Any]]:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{path} is not a fileset.", hint='It should look like {"dataset": ["file.root"]}.')
    return {name: _dataset(path, name, entry) for name, entry in data.items()}


def _dataset(path: Path, name: str, entry: Any) -> dict[str, Any]:
    """Read a dataset in any form that coffea takes, and keep its metadata."""
    entry = entry if isinstance(entry, dict) else {"files": entry}
    files, tree = entry.get("files"), entry.get("treename") or TREE
    if isinstance(files, list):
        files = dict.fromkeys(files, tree)
    if not isinstance(files, dict) or not files:
        raise ConfigError(f"{path}: dataset {name} names no files.", hint='Write {"dataset": ["file.root"]}.')
    trees = {str(file): _tree(value, tree) for file, value in files.items()}
    return {"files": trees, **({"metadata": entry["metadata"]} if entry.get("metadata") else {})}


def _tree(value: Any, default: str) -> str:
    return str((value.get("object_path") if isinstance(value, dict) else value) or default)


def _check_root(name: str, tree: str) -> None:
    if not Path(name).is_file():
        raise DataError(f"There is no file {name}.")
    try:
        with uproot.open(name) as file:
            trees = sorted({key.partition(";")[0] for key in file})
    except Exception as error:  # noqa: BLE001 - a damaged file fails in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{name} is not a readable ROOT file: {reason}") from None
    if tree not in trees:
        raise DataError(f"{name} has no tree '{tree}'; it has {', '.join(trees) or 'nothing'}.")
