"""What is said of a job before it is submitted; real schedulers are asked in tests/schedulers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sonic_parsl.executors.batch.dialects import DIALECTS
from sonic_parsl.executors.checks import rehearsal
from sonic_parsl.executors.checks.rehearsal import objections, silence
from sonic_parsl.site import Job, ServerGroup, Workers


def test_a_local_job_has_nobody_to_object() -> None:
    assert list(objections(Job())) == []
    assert silence("local") is None


@pytest.mark.parametrize("provider", ["slurm", "gridengine", "htcondor", "pbspro", "lsf"])
def test_a_batch_system_that_is_not_here_does_not_answer(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert str(silence(provider)).endswith("` fails: No such file or directory")


def test_a_word_that_the_batch_system_does_not_have_is_said(tmp_path: Path) -> None:
    (problem,) = objections(Job(provider="gridengine", partition="gpu"))
    assert problem.startswith("Provider gridengine has no 'partition'.")


def test_a_walltime_that_start_and_drain_use_up_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    group = {"provider": "pbspro", "start_timeout": 300, "drain_before": 120}
    (problem,) = objections(ServerGroup.model_validate({**group, "walltime": "00:07:00"}, by_name=True))
    assert problem == (
        "walltime 00:07:00 may leave nothing to serve in: a start may take 300 s (start-timeout), "
        "and the last 120 s take no requests (drain-before). Raise it."
    )
    assert list(objections(ServerGroup.model_validate({**group, "walltime": "00:07:01"}, by_name=True))) == []


@pytest.mark.parametrize("kind", [Workers, ServerGroup])
@pytest.mark.parametrize(
    ("provider", "asked"),
    [("slurm", "00:10:00"), ("gridengine", "00:10:00"), ("pbspro", "00:20:00"), ("lsf", "00:10:00")],
)
def test_a_walltime_that_nobody_says_is_a_problem(
    kind: type[Job], provider: str, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(rehearsal, "DIALECTS", {name: replace(one, rehearsal=None) for name, one in DIALECTS.items()})
    (problem,) = objections(kind.model_validate({"provider": provider}))
    assert problem == (
        f"the site file says no walltime, and Parsl asks for {asked}, which is too short for most runs. "
        'Add `walltime: "HH:MM:SS"`, also where a request says it in the batch system\'s words.'
    )
    assert list(objections(kind.model_validate({"provider": provider, "walltime": "01:00:00"}))) == []


def test_jobs_of_htcondor_may_have_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(rehearsal, "DIALECTS", {name: replace(one, rehearsal=None) for name, one in DIALECTS.items()})
    assert list(objections(Workers(provider="htcondor"))) == []


def test_a_walltime_in_which_workers_do_little_but_start_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (problem,) = objections(Workers(provider="pbspro", walltime=299))
    assert problem == (
        "walltime 00:04:59 leaves little to work in: each job starts Python first, and its workers begin no chunk "
        "in its last 29.9 s. Raise it to what many chunks take."
    )
    assert list(objections(Workers(provider="pbspro", walltime=300))) == []
