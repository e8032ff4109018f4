"""What a batch job knows of itself: its id, its node, when it ends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

JOB_ID_VARIABLES = ("SLURM_JOB_ID", "JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID")
"""Slurm, Grid Engine, PBS, LSF, Flux."""
CONDOR_AD = "_CONDOR_JOB_AD"
"""Where HTCondor, which has no such variable, says on the node which file describes the job."""

BEGAN_ENV = "SONIC_PARSL_JOB_BEGAN"
"""Where the job's script notes when the job began, in whole seconds since the epoch: from then on batch systems count."""


def job_id(environ: Mapping[str, str]) -> str:
    """Return the batch system's id of this job, else its name in Parsl; an empty string outside of one."""
    told = next((environ[name] for name in JOB_ID_VARIABLES if environ.get(name)), "")
    return told or _condor_id(environ.get(CONDOR_AD, "")) or environ.get("JOBNAME", "")


def _condor_id(path: str) -> str:
    try:
        said = Path(path).read_text(errors="replace") if path else ""
    except OSError:
        return ""  # of a job in which this one was submitted, on another node
    numbers = dict(re.findall(r"^(ClusterId|ProcId) = (\d+)$", said, re.MULTILINE))
    return f"{numbers['ClusterId']}.{numbers['ProcId']}" if len(numbers) == 2 else ""


def ends_at(environ: Mapping[str, str], *, started_at: float, walltime_s: float | None) -> float | None:
    """Return when this job's walltime ends, in seconds since the epoch; None where nobody says.

    Slurm says it on the node; elsewhere the requested walltime counts from when the job's script says that the
    job began, or where it does not from the agent's start.
    """
    told = environ.get("SLURM_JOB_END_TIME", "")
    if told.isdigit():
        return float(told)
    if walltime_s is None:
        return None
    noted = environ.get(BEGAN_ENV, "")
    began = min(float(noted), started_at) if noted.isdigit() else started_at  # of two clocks, one may be ahead
    return began + walltime_s
