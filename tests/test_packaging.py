"""What is built and installed is one package, whole, whichever way it is built."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")


def uv(*args: str | Path) -> None:
    done = subprocess.run([UV, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an sdist and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--out-dir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_brings_one_top_level_module(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in names_in(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sonic_parsl"}


def test_the_wheel_holds_every_file_of_every_folder_once(wheel: Path) -> None:
    names = names_in(wheel)
    assert len(names) == len(set(names))
    files = [
        path.relative_to(ROOT)
        for folder in ("sonic_parsl", "executors", "workflows", "configs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not is_linked(path)
    ]
    expected = {str(PurePosixPath("sonic_parsl", *path.parts[path.parts[0] == "sonic_parsl" :])) for path in files}
    assert {"sonic_parsl/configs/local.yaml", "sonic_parsl/workflows/models/btag/1/model.onnx"} < expected
    assert {"sonic_parsl/server/backends/onnxruntime/model.py", "sonic_parsl/py.typed"} < expected
    assert {name for name in names if ".dist-info/" not in name} == expected


def is_linked(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents)


def test_a_wheel_from_the_checkout_equals_one_from_the_sdist(wheel: Path, tmp_path: Path) -> None:
    uv("build", "--wheel", "--out-dir", tmp_path, ROOT)
    (direct,) = tmp_path.glob("*.whl")
    assert sorted(names_in(direct)) == sorted(names_in(wheel))


def test_the_sdist_holds_no_links_and_the_tests(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    inside = {member.name.partition("/")[2] for member in members}
    assert {"tests/test_packaging.py", "executors/servers/server_executor.py", "configs/local.yaml", "LICENSE"} < inside
    assert not [name for name in inside if name.startswith("sonic_parsl/executors")]


INSTALLED = """
import pathlib, sys
import sonic_parsl, sonic_parsl.executors.servers.block_book, sonic_parsl.workflows.inputs, sonic_parsl.site
from sonic_parsl.repository import check
home = pathlib.Path(sys.prefix)
for module in (sonic_parsl, sonic_parsl.executors, sonic_parsl.workflows, sonic_parsl.configs):
    assert home in pathlib.Path(module.__file__).parents, module.__file__
assert not (set(sys.modules) & {"executors", "workflows", "configs"})
assert home in sonic_parsl.site.find("local").parents
assert not check(pathlib.Path(sonic_parsl.workflows.__file__).parent / "models")
"""


def test_the_installed_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    uv("venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    uv("pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel)
    # The libraries of this environment, after the wheel's own: a .pth file in them is not followed.
    (tmp_path / "venv" / sitelib() / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run(
        [python, "-I", "-c", "import sonic_parsl.configs" + INSTALLED],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version = subprocess.run(
        [python.with_name("sonic-parsl"), "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert version.stdout.startswith("sonic-parsl, version ")


def sitelib() -> str:
    return str(Path(sysconfig.get_path("purelib")).relative_to(sys.prefix))


@pytest.mark.parametrize("name", ["executors", "workflows", "configs"])
@pytest.mark.parametrize("statement", ["import {}", "from {} import x"])
def test_ruff_bans_the_folders_as_top_level_names(name: str, statement: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", "--stdin-filename", "x.py", "-"],
        input=statement.format(name) + "\n",
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"Import sonic_parsl.{name}." in done.stdout


@pytest.mark.parametrize("name", ["executors", "workflows", "configs"])
def test_the_links_in_the_checkout_are_relative(name: str) -> None:
    link = ROOT / "sonic_parsl" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}"
