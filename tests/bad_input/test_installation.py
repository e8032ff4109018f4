"""A Triton that is missing, damaged or not for this machine: said with the file and the command that mends it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import uproot

from sonic_parsl.errors import RuntimeMissingError
from sonic_parsl.server.install import WheelInstallation, find, glibc_problem, install, platform_problem
from sonic_parsl.server.runtimes import runtime
from tests.bad_input.conftest import Call, assert_says, told
from tests.installation import copied

Damage: TypeAlias = Callable[[Path], object]
"""Damages a copy of the installation; its files are hard links, so none is written into."""

MAKE_ANEW = "Run `sonic-parsl server install`, which makes it anew."
SERVER = "triton/pytriton/tritonserver"


def removed(pattern: str) -> Damage:
    def remove(folder: Path) -> None:
        (path,) = folder.glob(pattern)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def cut(pattern: str, size: int) -> Damage:
    def cut_off(folder: Path) -> None:
        (path,) = folder.glob(pattern)
        content, mode = path.read_bytes()[:size], path.stat().st_mode
        path.unlink()
        path.write_bytes(content)
        path.chmod(mode)

    return cut_off


ONNXRUNTIME = "python/lib/python3*/site-packages/onnxruntime"

CASES: list[tuple[str, Damage, str]] = [
    (
        "no binary",
        removed(f"{SERVER}/bin/tritonserver"),
        f"Triton in {{folder}} is damaged: {{folder}}/{SERVER}/bin/tritonserver is missing. {MAKE_ANEW}",
    ),
    (
        "a binary that was cut off",
        cut(f"{SERVER}/bin/tritonserver", 4096),
        f"Triton in {{folder}} is damaged: {{folder}}/{SERVER}/bin/tritonserver has 4096 of … bytes. {MAKE_ANEW}",
    ),
    (
        "no ONNX Runtime",
        removed(f"{ONNXRUNTIME}-*.dist-info"),
        f"Triton in {{folder}} is damaged: the package onnxruntime is missing. {MAKE_ANEW}",
    ),
    (
        "half an ONNX Runtime",
        removed(f"{ONNXRUNTIME}/capi"),
        f"Triton in {{folder}} is damaged: {{folder}}/…/onnxruntime/capi/… is missing. {MAKE_ANEW}",
    ),
    (
        "no stub for models",
        removed("backends/python/libtriton_python.so"),
        f"Triton in {{folder}} is damaged: {{folder}}/backends/python/libtriton_python.so is missing. {MAKE_ANEW}",
    ),
    (
        "no Python",
        removed("python/bin/python"),
        "Triton is not installed here, or not completely. Run `sonic-parsl server install`.",
    ),
    (
        "nothing at all",
        lambda folder: shutil.rmtree(folder.parent),
        "Triton is not installed here, or not completely. Run `sonic-parsl server install`.",
    ),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the installed Triton, which everything here uses."""
    installed: WheelInstallation = install()
    monkeypatch.setenv("SONIC_PARSL_CACHE", str(tmp_path / "cache"))
    return copied(installed, tmp_path / "cache")


@pytest.mark.parametrize(("damage", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_a_damaged_installation_is_told_by_the_doctor_and_stops_a_run(
    call: Call, tmp_path: Path, folder: Path, damage: Damage, sentence: str
) -> None:
    assert find().folder == folder
    damage(folder)
    sentence = sentence.replace("{folder}", str(folder))
    result = call("doctor")
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if "runtime wheel" in line]
    assert_says(line, f"problem servers triton: runtime wheel: {sentence}")
    with uproot.recreate(tmp_path / "good.root") as file:
        file["Events"] = {"x": np.arange(3)}
    assert_says(told(call("run", "btag_ttbar", "good.root")), sentence)


def test_a_machine_that_is_too_old_or_another_is_told_what_to_use_instead() -> None:
    assert glibc_problem("2.34") == (
        "Triton's wheel needs glibc 2.35 or newer; this machine has 2.34. "
        "Use the apptainer runtime here, with an image of Triton: it brings its own system."
    )
    assert "this machine has another C library" in str(glibc_problem(""))
    assert "Run servers on another machine." in str(platform_problem("Linux", "aarch64"))


def test_on_a_machine_that_is_too_old_doctor_run_and_installation_say_so(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.28"))
    sentence = str(glibc_problem("2.28"))
    assert f"problem servers triton: runtime wheel: {sentence}" in call("doctor").stdout
    with uproot.recreate(tmp_path / "good.root") as file:
        file["Events"] = {"x": np.arange(3)}
    assert told(call("run", "btag_ttbar", "good.root")) == sentence
    assert told(call("server", "install")) == sentence
    with pytest.raises(RuntimeMissingError, match=r"needs glibc 2\.35"):
        install()
    assert runtime("wheel").problems()[0] == sentence
