"""What came out of a run is kept, also where its folder has gone bad meanwhile."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import coffea.util
import pytest
from coffea.nanoevents import NanoAODSchema

from sonic_parsl.errors import AnalysisError, DataError
from sonic_parsl.report import Report, RunLog
from sonic_parsl.workflows import runner
from sonic_parsl.workflows.btag_ttbar import BTagTTbar
from sonic_parsl.workflows.loader import Workflow

OUTPUT = {"events": 3}


@pytest.fixture
def workflow() -> Workflow:
    return Workflow("mine", BTagTTbar(), NanoAODSchema, models=None, fileset=None, draw=None)


@pytest.fixture
def report() -> Report:
    return RunLog().report((), (), [])


def test_accumulator_and_report_are_in_the_folder(workflow: Workflow, report: Report, tmp_path: Path) -> None:
    written = runner.keep(workflow, OUTPUT, report, tmp_path / "out")
    assert written == [tmp_path / "out" / "report.json", tmp_path / "out" / "mine.coffea"]
    assert coffea.util.load(written[1]) == OUTPUT


def test_a_picture_that_ends_python_is_an_error_and_not_a_run_that_is_done(
    workflow: Workflow, report: Report, tmp_path: Path
) -> None:
    with pytest.raises(AnalysisError, match="SystemExit: 0"):
        runner.keep(replace(workflow, draw=lambda *_: sys.exit(0)), OUTPUT, report, tmp_path)


def test_where_the_folder_cannot_be_written_to_any_more_they_are_elsewhere_and_it_says_where(
    workflow: Workflow, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").write_text("somebody has put a file here")
    with pytest.raises(DataError) as caught:
        runner.keep(workflow, OUTPUT, report, Path("out"))
    (there,) = tmp_path.glob("mine-*")
    assert caught.value.message == "The folder out cannot be written to any more: File exists."
    assert caught.value.hint == f"Accumulator and report are in {there}."
    assert coffea.util.load(there / "mine.coffea") == OUTPUT
    assert json.loads((there / "report.json").read_text())["events_in"] == 0


def test_a_result_that_fits_nowhere_is_said_to_be_lost(
    workflow: Workflow, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/proc")
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    with pytest.raises(DataError, match="the result is lost") as caught:
        runner.keep(workflow, OUTPUT, report, Path("/proc/out"))
    assert caught.value.__suppress_context__
