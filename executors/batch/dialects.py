"""How each batch system says what site files say: one table, from a provider to its words and commands."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parsl.jobs.states import JobState
from parsl.launchers import SingleNodeLauncher, SrunLauncher
from parsl.providers import LocalProvider, LSFProvider, PBSProProvider, SlurmProvider
from parsl.providers.base import ExecutionProvider
from parsl.providers.grid_engine import grid_engine

from sonic_parsl.executors.batch.gridengine import GridEngineProvider
from sonic_parsl.executors.batch.htcondor import HTCondorProvider
from sonic_parsl.executors.batch.undertaker import Undertaker
from sonic_parsl.walltime import clock

LINES = "scheduler_options"
"""The argument of Parsl's providers for lines at the head of a job's script; several words add to it."""
Word = Callable[[Any], dict[str, Any]]
"""From what a site file says to arguments of Parsl's provider."""


@dataclass(frozen=True)
class Dialect:
    """What a batch system calls things.

    Attributes
    ----------
    provider
        Parsl's provider.
    words
        Words of :class:`sonic_parsl.site.Job` that it knows.
    defaults
        Arguments that Parsl's provider should have where the site file does not say otherwise.
    init
        Shell line before the site's own ``worker-init``.
    began
        Shell command that tells on the node when the job began, in seconds since the epoch.
    cancel
        Command that cancels jobs, by their ids; None where no job outlives its driver.
    why_waiting
        Command that says why a job, whose id is appended, waits in the queue.
    reason
        What to take of the command's answer.
    answers
        Command that succeeds where the batch system can be reached.
    rehearsal
        How its command to submit a job begins, and how one that only judges the job does; None where there is none.
    refusal
        What the latter says of a job that would never run, where its exit code does not tell.
    longest
        Command that tells the longest walltime of a partition, whose name is appended.
    """

    provider: type[ExecutionProvider]
    words: Mapping[str, Word]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    init: str = ""
    began: str = "date +%s"
    cancel: str | None = None
    why_waiting: tuple[str, ...] = ()
    reason: re.Pattern[str] = re.compile(r"(.*)", re.DOTALL)
    answers: tuple[str, ...] = ()
    rehearsal: tuple[str, str] | None = None
    refusal: re.Pattern[str] = re.compile(r"(?!)")
    longest: tuple[str, ...] = ()


def _as(argument: str) -> Word:
    return lambda value: {argument: value}


def _walltime(seconds: float) -> dict[str, Any]:
    return {"walltime": clock(seconds)}


def _lines(beginning: str) -> Word:
    """Return the word for lines in the scheduler's own language, each of which begins with the same."""
    return lambda value: {LINES: "\n".join(f"{beginning}{line}" for line in _listed(value))}


def _listed(value: str | float | Sequence[str]) -> list[str]:
    return [str(value)] if isinstance(value, str | int | float) else list(value)


LAUNCHERS = {"single-node": SingleNodeLauncher, "srun": SrunLauncher}


def _launcher(name: str) -> dict[str, Any]:
    return {"launcher": LAUNCHERS[name]()}


def _nodes_by_srun(nodes: int) -> dict[str, Any]:
    """Start on each node: without srun all copies would run on the first one."""
    return {"nodes_per_block": nodes, **(_launcher("srun") if nodes > 1 else {})}


CPUS_FOR_SRUN = '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
"""Since Slurm 22.05 srun does not take over a job's --cpus-per-task: each of its processes would have one core."""

CONDOR_BEGAN = """sed -n 's/^JobCurrentStartDate = //p' "$_CONDOR_JOB_AD" || date +%s"""
"""HTCondor counts from before it brings a job's files, as its file beside the job says."""

OWN_TMPDIR = '[ -z "${TMP:-}" ] || export TMPDIR="$TMP"'
"""Grid Engine makes each job a temporary folder, which goes with the job. Not all of its kinds say so in TMPDIR, too."""


DIALECTS: dict[str, Dialect] = {
    "local": Dialect(
        LocalProvider,
        words={
            "nodes": _as("nodes_per_block"),
            "walltime": lambda _: {},  # nobody ends the job; its servers drain and end by themselves
        },
    ),
    "slurm": Dialect(
        SlurmProvider,
        words={
            "partition": _as("partition"),
            "nodes": _nodes_by_srun,
            "walltime": _walltime,
            "account": _as("account"),
            "request": _lines("#SBATCH "),
            "launcher": _launcher,
        },
        defaults={"exclusive": False},  # a server takes a device, not the node
        init=CPUS_FOR_SRUN,
        cancel="scancel",
        why_waiting=("squeue", "--noheader", "--format=%T, %r", "--job"),
        answers=("sinfo", "--noheader"),
        rehearsal=("sbatch", "sbatch --test-only"),
        longest=("sinfo", "--noheader", "--format=%l", "--partition"),
    ),
    "gridengine": Dialect(
        GridEngineProvider,
        words={
            "queue": _as("queue"),
            "walltime": _walltime,
            "account": _lines("#$ -A "),
            "request": _lines("#$ "),
        },
        init=OWN_TMPDIR,
        cancel="qdel",
        why_waiting=("qstat", "-j"),
        reason=re.compile(r"scheduling info:\s*(.*)", re.DOTALL),
        answers=("qstat",),
        rehearsal=("qsub", "qsub -w v"),
        refusal=re.compile(r"verification: no suitable"),
    ),
    "htcondor": Dialect(
        HTCondorProvider,
        words={
            "walltime": lambda seconds: {**_walltime(seconds), LINES: f"allowed_job_duration = {round(seconds)}"},
            "account": _lines("accounting_group = "),
            "request": _lines(""),
        },
        began=CONDOR_BEGAN,
        cancel="condor_rm",
        why_waiting=("condor_q", "-better-analyze"),
        answers=("condor_q", "-totals"),
        rehearsal=("condor_submit", "condor_submit -dry-run /dev/null"),
    ),
    "pbspro": Dialect(
        PBSProProvider,
        words={
            "queue": _as("queue"),
            "walltime": _walltime,
            "account": _as("account"),
            "request": _lines("#PBS "),
        },
        cancel="qdel",
        why_waiting=("qstat", "-f"),
        reason=re.compile(r"comment = ([^\n]*)"),
        answers=("qstat", "-B"),
    ),
    "lsf": Dialect(
        LSFProvider,
        words={
            "queue": _as("queue"),
            "walltime": _walltime,
            "account": _as("project"),
            "request": _lines("#BSUB "),
        },
        cancel="bkill",
        why_waiting=("bjobs", "-p"),
        reason=re.compile(r"PENDING REASONS:\s*(.*)", re.DOTALL),
        answers=("bqueues",),
    ),
}
"""PBS and LSF start all of a block's servers on its first node: so they have no `nodes` here."""


# Grid Engine's `t` is a job on its way to its node, `R` a job that runs again; Parsl calls them failed and unknown.
# Its table is the one place to say so.
grid_engine.translate_table.update(t=JobState.RUNNING, rt=JobState.RUNNING, rr=JobState.RUNNING)


def dialect_of(provider: ExecutionProvider | None) -> Dialect | None:
    """Return how a provider's batch system speaks; None for one that is not in the table."""
    return next((one for one in DIALECTS.values() if _is_of(provider, one.provider)), None)


def watch_jobs(provider: ExecutionProvider | None, undertaker: Undertaker) -> None:
    """Let what a provider submits from here on be cancelled when its driver has ended, where jobs outlive one."""
    dialect = dialect_of(provider)
    if dialect is not None and dialect.cancel is not None:
        undertaker.watch(provider, dialect.cancel, dialect.answers)


def _is_of(provider: ExecutionProvider | None, ours: type[ExecutionProvider]) -> bool:
    """Return whether a provider is ours, or Parsl's own that ours is made of: that of a user's own configuration."""
    return isinstance(provider, ours) or issubclass(ours, type(provider))
