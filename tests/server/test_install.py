from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sonic_parsl.errors import RuntimeMissingError
from sonic_parsl.server import install as installation
from sonic_parsl.server.install import (
    OUR_BACKEND,
    WheelInstallation,
    find,
    glibc_problem,
    install,
    machine_problems,
    pip_problem,
    platform_problem,
)
from tests.installation import copied


@pytest.mark.parametrize("version", ["2.35", "2.36", "2.41", "3.0", "2.35.1"])
def test_a_new_enough_glibc_will_do(version: str) -> None:
    assert glibc_problem(version) is None


@pytest.mark.parametrize("version", ["2.34", "2.28", "2.9"])
def test_an_old_glibc_is_named_with_what_to_use_instead(version: str) -> None:
    assert glibc_problem(version) == (
        f"Triton's wheel needs glibc 2.35 or newer; this machine has {version}. "
        "Use the apptainer runtime here, with an image of Triton: it brings its own system."
    )


def test_a_machine_without_glibc_is_told_so() -> None:
    assert "this machine has another C library" in str(glibc_problem(""))


def test_only_x86_64_linux_will_do() -> None:
    assert platform_problem("Linux", "x86_64") is None
    assert "this is Linux on aarch64" in str(platform_problem("Linux", "aarch64"))
    assert "this is Darwin on arm64" in str(platform_problem("Darwin", "arm64"))


def test_pip_must_be_there_and_know_other_interpreters() -> None:
    assert pip_problem("22.3") is None
    assert pip_problem("26.0.1") is None
    assert "this is pip 22.0.2" in str(pip_problem("22.0.2"))
    assert "does not have" in str(pip_problem(None))


def test_an_installation_has_all_that_a_server_needs(installed: WheelInstallation) -> None:
    assert machine_problems() == []
    assert os.access(installed.tritonserver, os.X_OK)
    assert (installed.pytriton, installed.numpy.split(".")[0]) == ("0.7.0", "1")
    files = [path for path in installed.backends.rglob("*") if path.is_file()]
    assert {str(path.relative_to(installed.backends)) for path in files if path.suffix != ".pyc"} == {
        "python/libtriton_python.so",
        "python/triton_python_backend_utils.py",
        "python/triton_python_backend_stub",
        "onnxruntime/model.py",
    }
    assert not any(path.is_symlink() for path in files)
    assert (installed.backends / "python/triton_python_backend_stub").stat().st_mode & stat.S_IXUSR


def test_the_servers_python_sees_its_own_numpy_and_onnxruntime(installed: WheelInstallation) -> None:
    code = "import numpy, onnxruntime; print(numpy.__version__, onnxruntime.__version__)"
    done = subprocess.run(
        [str(installed.python_bin / "python"), "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [installed.numpy, installed.onnxruntime]


def test_a_second_installation_is_instant_and_the_same(installed: WheelInstallation) -> None:
    start = time.perf_counter()
    assert install() == installed
    assert time.perf_counter() - start < 5.0  # to make it takes longer, to download it minutes


def test_where_nothing_is_installed_the_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SONIC_PARSL_CACHE", str(tmp_path))
    with pytest.raises(RuntimeMissingError, match=r"Triton is not installed here.*`sonic-parsl server install`"):
        find()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SONIC_PARSL_CACHE", str(tmp_path / "file"))
    with pytest.raises(RuntimeMissingError, match=r"Not a directory.*SONIC_PARSL_CACHE"):
        install()


def test_two_installations_at_once_mend_a_half_made_one(tmp_path: Path) -> None:
    minor = sys.version_info.minor if sys.version_info.minor in installation.PYTHON_MINORS else 12
    half = tmp_path / f"server/{installation.PYTRITON}-py3.{minor}"
    (half / "triton").mkdir(parents=True)
    (half / "triton/rubbish").touch()
    code = "from sonic_parsl.server.install import install; print(install().folder)"
    env = {**os.environ, "SONIC_PARSL_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    folders = {process.communicate(timeout=240)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (folder,) = map(Path, folders)
    assert json.loads((folder / "installed.json").read_text())["pytriton"] == installation.PYTRITON
    assert not (half / "triton/rubbish").exists()
    assert not [path for path in folder.rglob(".*") if path.is_file() and path.suffix == f".{os.getpid()}"]


def test_an_installation_with_an_older_backend_of_ours_is_brought_up_to_date(
    installed: WheelInstallation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = copied(installed, tmp_path)
    (copy / "backends/onnxruntime/model.py").unlink()
    (copy / "backends/onnxruntime/model.py").write_text("old")
    monkeypatch.setenv("SONIC_PARSL_CACHE", str(tmp_path))
    with pytest.raises(RuntimeMissingError):
        find()
    assert install().folder == copy
    assert (copy / "backends/onnxruntime/model.py").read_bytes() == OUR_BACKEND.read_bytes()


def test_an_installation_whose_interpreter_was_removed_is_not_used(
    installed: WheelInstallation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "server" / installed.folder.name
    (copy / "backends/onnxruntime").mkdir(parents=True)
    (copy / "backends/onnxruntime/model.py").write_bytes(OUR_BACKEND.read_bytes())
    (copy / "python/bin").mkdir(parents=True)
    (copy / "python/bin/python").symlink_to(tmp_path / "gone")
    (copy / "installed.json").write_bytes((installed.folder / "installed.json").read_bytes())
    monkeypatch.setenv("SONIC_PARSL_CACHE", str(tmp_path))
    with pytest.raises(RuntimeMissingError, match="not completely"):
        find()


def test_a_python_that_does_not_suit_gives_way_to_one_on_path_or_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeMissingError, match=r"needs a Python 3\.10, 3\.11 or 3\.12"):
        installation._interpreter()
    link = tmp_path / f"python3.{sys.version_info.minor}"
    link.symlink_to(Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}"))
    if sys.version_info.minor in installation.PYTHON_MINORS:
        assert installation._interpreter().path == str(link)


def test_a_failed_step_says_what_failed_and_with_which_words() -> None:
    with pytest.raises(RuntimeMissingError, match=r"(?s)exit\(3\).*no index here.*is a package index within reach"):
        installation._run([sys.executable, "-c", "import sys; sys.stderr.write('no index here\\n'); exit(3)"])
