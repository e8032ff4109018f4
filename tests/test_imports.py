"""Rooms import downwards only, cheap names stay cheap, and each class has one module name."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import sonic_parsl

PACKAGE = Path(sonic_parsl.__file__).parent
FOLDERS = ("sonic_parsl", "executors", "workflows", "configs")

LEVELS = (
    {"__main__", "cli", "doctor", "workflows"},
    {"executors", "configs"},
    {"model", "pool", "site", "endpoint", "report"},
    {"client", "server"},
    {"columns", "repository"},
    {"kserve", "rpc", "status"},
    {"protocol", "poolref", "credentials", "devices", "errors", "ports", "cache", "folders", "yaml_file", "walltime"},
)
"""From the top floor of the house down; see docs/design.md."""


def module_names() -> list[str]:
    found = pkgutil.walk_packages(sonic_parsl.__path__, "sonic_parsl.")
    return ["sonic_parsl", *(module.name for module in found)]


def source(name: str) -> Path:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(name: str) -> Iterator[str]:
    """Yield the full names of what a module of ours imports from the package, wherever the statement stands."""
    for node in ast.walk(ast.parse(source(name).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sonic_parsl"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sonic_parsl"):
            assert node.level == 0
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    """Return the room that a full name lies in; public names of the package itself are in none."""
    part = name.split(".")[1] if "." in name else ""
    return part if any(part in level for level in LEVELS) else ""


def level(of: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if of in rooms)


def room_imports() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for name in module_names()[1:]:
        graph.setdefault(room(name), set()).update(room(found) for found in imports(name))
    return graph


def test_every_module_lies_in_a_room_of_the_plan() -> None:
    assert not [name for name in module_names()[1:] if not room(name)]


def test_rooms_import_downwards_only() -> None:
    wrong = [
        f"{upper} imports {lower}"
        for upper, lowers in room_imports().items()
        for lower in lowers - {"", upper}
        if level(lower) < level(upper)
    ]
    assert not wrong


def test_no_two_rooms_import_each_other() -> None:
    graph = {upper: lowers - {"", upper} for upper, lowers in room_imports().items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_client_and_server_do_not_know_each_other() -> None:
    graph = room_imports()
    assert "server" not in graph["client"]
    assert "client" not in graph["server"]


def test_only_workflows_use_the_public_names_of_the_package() -> None:
    assert {upper for upper, lowers in room_imports().items() if "" in lowers} <= {"workflows"}


def test_the_plan_in_the_docs_is_the_one_tested_here() -> None:
    text = (PACKAGE.parent / "docs" / "design.md").read_text()
    sentence = text.partition("Imports go down only:")[2].partition(".")[0]
    drawn = [set(re.findall(r"`(\w+)`", floor)) for floor in sentence.split("→")]
    assert len(drawn) == len(LEVELS)
    assert all(names and names <= floor for names, floor in zip(drawn, LEVELS, strict=True))


@pytest.mark.parametrize("module", ["sonic_parsl", "sonic_parsl.protocol", "sonic_parsl.errors"])
def test_what_every_process_imports_is_cheap(module: str) -> None:
    heavy = {"parsl", "coffea", "grpc", "awkward", "numpy", "uproot", "onnxruntime", "matplotlib"}
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_model_needs_neither_parsl_nor_coffea() -> None:
    code = "import sys, sonic_parsl; sonic_parsl.Model; print(*sorted(set(sys.modules) & {'parsl', 'coffea'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(getattr(sonic_parsl, name) is not None for name in sonic_parsl.__all__)
    assert dir(sonic_parsl) == sorted(sonic_parsl.__all__)
    assert len(sonic_parsl.__all__) <= 10
    with pytest.raises(AttributeError, match="module 'sonic_parsl' has no attribute 'Modell'"):
        _ = sonic_parsl.Modell


def test_each_class_has_one_module_name() -> None:
    modules = [importlib.import_module(name) for name in module_names()]
    classes = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    ours = [cls for cls in classes if is_ours(cls)]
    assert len(ours) > 100
    for cls in ours:
        assert cls.__module__.startswith("sonic_parsl."), cls
        assert getattr(importlib.import_module(cls.__module__), cls.__qualname__) is cls


def is_ours(cls: type) -> bool:
    return real_file(sys.modules.get(cls.__module__)) is not None


def real_file(module: ModuleType | None) -> Path | None:
    """Return where a module of ours really is, whatever link or name it was imported by; None for others."""
    path = Path(getattr(module, "__file__", None) or "/").resolve()
    return path if any(PACKAGE.parent / folder in path.parents for folder in FOLDERS) else None


def test_each_file_is_imported_under_one_name() -> None:
    for name in module_names():
        importlib.import_module(name)
    names: dict[Path, set[str]] = {}
    for name, module in tuple(sys.modules.items()):
        if path := real_file(module):
            names.setdefault(path, set()).add(name)
    assert len(names) >= len(module_names())
    assert not {str(path): found for path, found in names.items() if len(found) > 1}
