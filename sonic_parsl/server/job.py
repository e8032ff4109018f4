"""What a batch job knows of itself: its id, its node, when it ends."""

from __future__ import annotations

from collections.abc import Mapping

JOB_ID_VARIABLES = ("SLURM_JOB_ID", "JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "JOBNAME")
"""Slurm, Grid Engine, PBS, LSF, Flux; the last is what Parsl's providers export."""


def job_id(environ: Mapping[str, str]) -> str:
    """Return the batch system's id of this job, or an empty string outside of one."""
    return next((environ[name] for name in JOB_ID_VARIABLES if environ.get(name)), "")


def ends_at(environ: Mapping[str, str], *, started_at: float, walltime_s: float | None) -> float | None:
    """Return when this job's walltime ends, in seconds since the epoch; None where nobody says.

    Slurm says it on the node; elsewhere the requested walltime counts from the agent's start.
    """
    told = environ.get("SLURM_JOB_END_TIME", "")
    if told.isdigit():
        return float(told)
    return None if walltime_s is None else started_at + walltime_s
