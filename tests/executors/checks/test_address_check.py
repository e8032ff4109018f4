"""A run whose nodes would look for the driver on themselves says so when it starts, before it waits for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sonic_parsl as sonic
from sonic_parsl.errors import RepositoryError
from sonic_parsl.executors.checks.address_check import loopback_problem
from sonic_parsl.site import SiteFile

PROGRAM = Path(sys.executable).with_name("sonic-parsl")
SITE = """
workers: {provider: slurm}
servers: {gpu: {provider: gridengine, models: nowhere}}
driver: {run-dir: runs}
"""
SAID = (
    "driver: nodes of gridengine, slurm cannot reach this machine at 127.0.0.1. Set `driver: {address: ...}` to one of"
)
STATIC = {"static": [{"url": "grpcs://triton.example.org:443", "models": ["btag"]}]}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site file that cannot come up."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.yaml").write_text(SITE)
    return tmp_path / "site.yaml"


def test_it_is_said_once_in_python(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RepositoryError, match="There is no model repository"):
        sonic.load_site(site)
    (record,) = [one for one in caplog.records if "cannot reach" in one.getMessage()]
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(SAID)


def test_it_is_said_once_on_the_command_line(site: Path, tmp_path: Path) -> None:
    command = [str(PROGRAM), "pool", "start", "--site", str(site), "--name", "mine"]
    done = subprocess.run(
        command, env={"XDG_STATE_HOME": str(tmp_path / "state")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    warning, error, *_ = done.stderr.splitlines()
    assert warning.startswith(f"Warning: {SAID}")
    assert error.startswith("Error: The model repository ")


@pytest.mark.parametrize(
    "settings",
    [
        {"servers": {"cpu": {}}},
        {"servers": {"gate": STATIC}},
        {"servers": {"gpu": {"provider": "slurm"}}, "driver": {"address": "192.0.2.1"}},
    ],
    ids=["this machine", "servers of others", "an address of its own"],
)
def test_where_all_reach_the_driver_nothing_is_said(settings: dict[str, object]) -> None:
    assert loopback_problem(SiteFile.model_validate(settings)) is None
