"""What is said of a job before it is submitted; real schedulers are asked in tests/schedulers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonic_parsl.executors.rehearsal import objections, silence
from sonic_parsl.site import Job, ServerGroup


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
