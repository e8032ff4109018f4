"""What HTCondor says of jobs, as recorded from a real one, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parsl.jobs.states import JobState, JobStatus

from sonic_parsl.errors import ConfigError
from sonic_parsl.executors.batch.htcondor import HTCondorProvider
from sonic_parsl.executors.batch.providers import make_provider, walltime_of
from sonic_parsl.site import Count, Job

HELD = "7.0 5 Transfer input files failure at access point vm: No such file or directory"


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HTCondorProvider:
    """A provider with a job 7.0 in a queue that says what is in the file `says`."""
    for name, line in {"condor_q": f"cat {tmp_path}/says", "condor_rm": f"echo $@ >> {tmp_path}/removed"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    made = HTCondorProvider()
    made.resources["7.0"] = {"status": JobStatus(JobState.RUNNING)}
    return made


@pytest.mark.parametrize(
    ("says", "state"),
    [
        ("7.0 1 undefined", JobState.PENDING),
        ("7.0 2 undefined", JobState.RUNNING),
        ("7.0 4 undefined", JobState.COMPLETED),
        ("7.0 6 undefined", JobState.RUNNING),
        ("7.0 7 undefined", JobState.RUNNING),
        (HELD, JobState.FAILED),
        ("", JobState.COMPLETED),
    ],
    ids=["idle", "running", "completed", "sends-output", "suspended", "held", "vanished"],
)
def test_a_jobs_state_is_what_the_queue_means(
    provider: HTCondorProvider, tmp_path: Path, says: str, state: JobState
) -> None:
    (tmp_path / "says").write_text(f"{says}\n")
    assert provider.status(["7.0"])[0].state == state


def test_a_held_job_is_removed_and_its_reason_is_kept(provider: HTCondorProvider, tmp_path: Path) -> None:
    (tmp_path / "says").write_text(f"{HELD}\n")
    provider.status(["7.0"])
    (tmp_path / "says").write_text("")
    assert "Transfer input files failure at access point vm" in str(provider.status(["7.0"])[0].message)
    assert (tmp_path / "removed").read_text().split() == ["7.0"]


def test_a_queue_that_does_not_answer_changes_nothing(provider: HTCondorProvider, tmp_path: Path) -> None:
    (tmp_path / "condor_q").write_text("#!/bin/sh\nexit 1\n")
    assert provider.status(["7.0"])[0].state == JobState.RUNNING


def test_cancelling_removes_a_job_once_and_leaves_it_time_to_end(provider: HTCondorProvider, tmp_path: Path) -> None:
    assert provider.cancel(["7.0"]) == [True]
    assert (tmp_path / "removed").read_text().split() == ["7.0"]


def test_the_submit_file_lets_jobs_leave_the_queue_and_the_sites_words_win(
    provider: HTCondorProvider, tmp_path: Path
) -> None:
    (tmp_path / "condor_submit").write_text('#!/bin/sh\necho "1 job(s) submitted to cluster 8."\n')
    (tmp_path / "condor_submit").chmod(0o755)
    provider.script_dir = str(tmp_path)
    provider.scheduler_options = "job_max_vacate_time = 5\n"
    assert provider.submit("agent", 1) == "8.0"
    lines = next(tmp_path.glob("*.submit")).read_text().splitlines()
    settings = dict(line.partition("=")[::2] for line in lines if "=" in line)  # the last one wins, as for HTCondor
    values = {name.strip(): value.strip() for name, value in settings.items()}
    assert values["leave_in_queue"] == "False"
    assert values["job_max_vacate_time"] == "5"
    assert values["transfer_output_files"] == '""'


def condor(**words: Any) -> HTCondorProvider:
    made = make_provider(Job.model_validate({"provider": "htcondor", **words}), count=Count())
    assert isinstance(made, HTCondorProvider)
    return made


def test_a_job_has_a_walltime_only_where_htcondor_was_told_of_one() -> None:
    assert walltime_of(condor()) is None
    assert walltime_of(condor(walltime="02:00:00")) == 7200


@pytest.mark.parametrize(
    "line", ["allowed_job_duration = 7200", "Allowed_Job_Duration=7200 ", "+MaxRuntime = 7200", "MY.MaxRuntime = 7200"]
)
def test_a_request_that_ends_jobs_is_their_walltime(line: str) -> None:
    assert walltime_of(condor(request=["request_cpus = 2", line, "request_memory = 1 GB"])) == 7200
    assert walltime_of(condor(options={"scheduler-options": line})) == 7200
    assert walltime_of(condor(request=line, walltime="02:00:00")) == 7200


@pytest.mark.parametrize(
    "words",
    [
        {"request": ["allowed_job_duration = 7200", "+MaxRuntime = 3600"]},
        {"request": "+MaxRuntime = 3600", "walltime": "02:00:00"},
        {"request": "+MaxRuntime = 2 * 3600"},
        {"request": "allowed_job_duration ="},
    ],
)
def test_jobs_of_no_one_length_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"not one number of seconds\. Say it once: `walltime: HH:MM:SS`"):
        condor(**words)
