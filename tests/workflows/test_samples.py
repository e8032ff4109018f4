"""Samples come through pip, are checked, and are fetched once."""

from __future__ import annotations

import hashlib
import shutil
import sys
import venv
from pathlib import Path

import pytest
import uproot

from sonic_parsl.errors import DataError
from sonic_parsl.workflows import samples


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SONIC_PARSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "samples"


def test_every_sample_has_its_committed_hash() -> None:
    files = samples.fetch()
    assert {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()} == samples.SAMPLES


def test_the_fileset_names_400_events() -> None:
    files = [file for dataset in samples.fileset().values() for file in dataset["files"].items()]
    assert [uproot.open({file: tree}).num_entries for file, tree in files] == [200, 200]


def test_only_the_damaged_sample_is_fetched_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as real:
        real.delenv("SONIC_PARSL_CACHE")
        shutil.copytree(samples.path("nano_dy").parent, empty_cache)
    samples.path("nano_dy").write_bytes(b"cut off")
    intact = samples.path("pfnano").stat().st_mtime_ns
    files = samples.fetch()
    assert hashlib.sha256(files["nano_dy"].read_bytes()).hexdigest() == samples.SAMPLES["nano_dy"]
    assert files["pfnano"].stat().st_mtime_ns == intact
    assert {file.name for file in empty_cache.iterdir()} == {f"{name}.root" for name in samples.SAMPLES}


def test_intact_samples_need_no_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert samples.fetch() == {name: samples.path(name) for name in samples.SAMPLES}


def test_a_sample_that_is_not_there_says_how_to_get_it(empty_cache: Path) -> None:
    with pytest.raises(DataError, match="sonic-parsl data fetch"):
        samples.path("nano_dy")


def test_an_unknown_sample_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"no sample named 'nano_zz'.*nano_tt_v12"):
        samples.path("nano_zz")


def test_a_python_without_pip_is_named(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(DataError, match="bare/bin/python has no pip"):
        samples.fetch()
    assert list(empty_cache.iterdir()) == []


def test_what_pip_cannot_get_is_an_error_with_its_reason(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match=r"(?s)could not download coffea.*No matching distribution"):
        samples.fetch()
    assert list(empty_cache.iterdir()) == []
