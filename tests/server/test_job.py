"""What a batch job says of itself in its environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonic_parsl.server.job import BEGAN_ENV, ends_at, job_id


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SLURM_JOB_ID": "4711", "JOBNAME": "parsl.cpu.block-0"}, "4711"),
        ({"JOB_ID": "17", "JOBNAME": "parsl"}, "17"),
        ({"PBS_JOBID": "5.server"}, "5.server"),
        ({"LSB_JOBID": "8"}, "8"),
        ({"FLUX_JOB_ID": "f2"}, "f2"),
        ({"JOBNAME": "parsl.cpu.block-0"}, "parsl.cpu.block-0"),
        ({"SLURM_JOB_ID": "", "PBS_JOBID": "6"}, "6"),
        ({"HOME": "/"}, ""),
    ],
)
def test_a_job_has_the_id_its_batch_system_gave_it(environ: dict[str, str], expected: str) -> None:
    assert job_id(environ) == expected


AD = """Args = ""
ClusterId = 118
DAGManJobId = 5
MyType = "Job"
ProcId = 3
RequestCpus = 2
"""
"""Lines of the file that HTCondor puts beside a job."""


def test_htcondor_says_it_in_a_file_beside_the_job(tmp_path: Path) -> None:
    ad = tmp_path / ".job.ad"
    environ = {"_CONDOR_JOB_AD": str(ad), "JOBNAME": "parsl.cpu.block-0"}
    ad.write_text(AD)
    assert job_id(environ) == "118.3"
    assert job_id({**environ, "SLURM_JOB_ID": "4711"}) == "4711"
    ad.write_text(AD.replace("ProcId", "PrevProcId"))
    assert job_id(environ) == "parsl.cpu.block-0"
    ad.unlink()
    assert job_id(environ) == "parsl.cpu.block-0"


def test_slurm_says_when_the_job_ends_and_is_believed_before_the_request() -> None:
    assert ends_at({"SLURM_JOB_END_TIME": "1700003600"}, started_at=1.7e9, walltime_s=60.0) == 1700003600.0


@pytest.mark.parametrize("told", ["", "soon", "-1"])
def test_else_the_requested_walltime_counts_from_the_agents_start(told: str) -> None:
    assert ends_at({"SLURM_JOB_END_TIME": told}, started_at=1000.0, walltime_s=60.0) == 1060.0
    assert ends_at({}, started_at=1000.0, walltime_s=60.0) == 1060.0


@pytest.mark.parametrize(
    ("noted", "expected"),
    [("940", 1000.0), ("1500", 1060.0), ("", 1060.0), ("soon", 1060.0)],
    ids=["before the agent", "by a clock that is ahead", "nowhere", "in other words"],
)
def test_elsewhere_the_requested_walltime_counts_from_the_jobs_start_where_its_script_notes_it(
    noted: str, expected: float
) -> None:
    assert ends_at({BEGAN_ENV: noted}, started_at=1000.0, walltime_s=60.0) == expected
    assert ends_at({BEGAN_ENV: noted, "SLURM_JOB_END_TIME": "2000"}, started_at=1000.0, walltime_s=60.0) == 2000.0


def test_a_job_of_no_known_length_never_ends() -> None:
    assert ends_at({BEGAN_ENV: "940"}, started_at=1000.0, walltime_s=None) is None
