"""What providers say of jobs, and what batch systems say of jobs that wait, from answers that were recorded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from parsl.jobs.states import JobState, JobStatus
from parsl.providers import CondorProvider, GridEngineProvider

from sonic_parsl.executors.batch.dialects import DIALECTS, dialect_of
from sonic_parsl.executors.batch.providers import make_provider
from sonic_parsl.executors.batch.queue_word import SILENCE, why_waiting
from sonic_parsl.site import Count, Job

QSTAT = """job-ID  prior   name       user         state submit/start at     queue                          slots ja-task-ID
-----------------------------------------------------------------------------------------------------------------
      7 0.55500 parsl.sge  me           %s     11/24/2026 19:09:53 all.q@localhost                    1
"""
WAITING = {
    "slurm": ("squeue", "PENDING, Resources\n", "PENDING, Resources"),
    "gridengine": (
        "qstat",
        'job_number: 4\nscheduling info:            (-l fpga=3) cannot run at host "n"\n',
        '(-l fpga=3) cannot run at host "n"',
    ),
    "pbspro": (
        "qstat",
        "Job Id: 4\n    comment = Not Running: no resources\n    ctime = 1\n",
        "Not Running: no resources",
    ),
    "lsf": ("bjobs", "JOBID USER\n PENDING REASONS:\n Job slot limit reached;\n", "Job slot limit reached;"),
    "htcondor": ("condor_q", "0 slots match this job\n", "0 slots match this job"),
}

Answer = Callable[[str, str], None]


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Return what makes a scheduler's command answer what it answered once."""

    def record(command: str, text: str) -> None:
        (tmp_path / "text").write_text(text)
        script = tmp_path / command
        script.write_text(f"#!/bin/sh\ncat {tmp_path / 'text'}\n")
        script.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return record


@pytest.mark.parametrize("state", ["t", "r", "Rr", "Rt"])
def test_a_grid_engine_job_on_its_way_to_a_node_has_not_failed(state: str, answer: Answer) -> None:
    provider = make_provider(Job(provider="gridengine"), count=Count())
    provider.resources["7"] = {"job_id": "7", "status": JobStatus(JobState.PENDING)}
    answer("qstat", QSTAT % state)
    assert provider.status(["7"])[0].state == JobState.RUNNING


@pytest.mark.parametrize("name", WAITING)
def test_a_batch_system_is_asked_why_a_job_waits(name: str, answer: Answer) -> None:
    command, said, reason = WAITING[name]
    provider = make_provider(Job.model_validate({"provider": name}), count=Count())
    answer(command, said)
    assert why_waiting(provider, "4") == reason


def test_one_that_does_not_answer_is_said_to_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for name in DIALECTS:
        assert why_waiting(make_provider(Job.model_validate({"provider": name}), count=Count()), "4") == SILENCE


@pytest.mark.parametrize("name", DIALECTS)
def test_a_provider_is_known_by_its_batch_system(name: str) -> None:
    assert dialect_of(make_provider(Job.model_validate({"provider": name}), count=Count())) is DIALECTS[name]


@pytest.mark.parametrize(("name", "provider"), [("gridengine", GridEngineProvider), ("htcondor", CondorProvider)])
def test_parsls_own_provider_of_a_batch_system_is_known_too(name: str, provider: type) -> None:
    assert dialect_of(provider()) is DIALECTS[name]


def test_who_has_no_batch_system_has_no_dialect() -> None:
    assert dialect_of(None) is None
