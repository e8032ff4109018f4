"""What a batch system says of a site's jobs before any is submitted; see ``sonic-parsl doctor``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any, NoReturn

from parsl.providers.base import ExecutionProvider

from sonic_parsl.errors import ConfigError
from sonic_parsl.executors.batch.dialects import DIALECTS, Dialect
from sonic_parsl.executors.batch.providers import make_provider, said_walltime, walltime_of
from sonic_parsl.executors.batch.queue_word import ASK_S, ask
from sonic_parsl.executors.workers.worker_executor import drain_margin
from sonic_parsl.site import Count, Job, ServerGroup, Workers
from sonic_parsl.walltime import clock, seconds

MEND = "Mend partition or queue, nodes, walltime, account or request in the site file."
LEAST_S = 300.0
"""Workers whose jobs are shorter do little but start."""


def silence(provider: str) -> str | None:
    """Return what keeps a batch system from answering; None where it answers."""
    command = DIALECTS[provider].answers
    if not command:
        return None
    answers, said = ask(command)
    return None if answers else f"`{' '.join(command)}` fails: {_line(said)}"


def objections(job: Job) -> Iterator[str]:
    """Yield what is wrong with a job, as a sentence each: the batch system's own objection, and its length.

    Nothing is submitted: the scheduler sees the very script that a run would submit, and only judges it.
    """
    try:
        provider = make_provider(job, count=Count())
    except ConfigError as error:
        yield str(error)
        return
    dialect = DIALECTS[job.provider]
    refused = _refusal(provider, dialect)
    if refused is not None:
        yield f"{job.provider} would refuse its job: {refused}. {MEND}"
    walltime_s = walltime_of(provider)
    if walltime_s is not None:
        yield from _too_long(walltime_s, job, dialect)
        if said_walltime(job, provider) is None:
            yield _unsaid(walltime_s)
        else:
            yield from _too_short(walltime_s, job)


class _Rehearsed(BaseException):
    """Ends a provider's submission in place of a job; providers catch every ``Exception`` there."""

    def __init__(self, exit_code: int, said: str) -> None:
        super().__init__(said)
        self.exit_code = exit_code
        self.said = said


def _refusal(provider: ExecutionProvider, dialect: Dialect) -> str | None:
    """Return why the scheduler would not take a provider's job; None where it would, or cannot be asked."""
    if dialect.rehearsal is None:
        return None
    real, rehearsed = dialect.rehearsal
    run = provider.execute_wait

    def rehearse(command: str, *_: Any) -> NoReturn:
        exit_code, stdout, stderr = run(command.replace(real, rehearsed, 1), ASK_S)
        raise _Rehearsed(exit_code, stderr or stdout)

    with tempfile.TemporaryDirectory(prefix="sonic-parsl-") as folder:
        provider.script_dir, provider.execute_wait = folder, rehearse
        try:
            provider.submit("true", 1, "rehearsal")
        except _Rehearsed as done:
            refused = done.exit_code != 0 or dialect.refusal.search(done.said)
            return _line(done.said) if refused else None
    return None


def _too_long(walltime_s: float, job: Job, dialect: Dialect) -> Iterator[str]:
    if not dialect.longest or job.partition is None:
        return
    answers, said = ask([*dialect.longest, job.partition])
    limit = said.strip().split("\n")[0].strip()
    try:
        limit_s = seconds(f"00:{limit}" if limit.count(":") == 1 else limit)
    except ValueError:  # infinite
        return
    if answers and isinstance(limit_s, float) and walltime_s > limit_s:
        yield f"walltime {clock(walltime_s)} is longer than partition {job.partition} allows, {limit}. Shorten it."


def _unsaid(walltime_s: float) -> str:
    return (
        f"the site file says no walltime, and Parsl asks for {clock(walltime_s)}, which is too short for most runs. "
        'Add `walltime: "HH:MM:SS"`, also where a request says it in the batch system\'s words.'
    )


def _too_short(walltime_s: float, job: Job) -> Iterator[str]:
    if isinstance(job, ServerGroup) and walltime_s <= job.start_timeout + job.drain_before:
        yield (
            f"walltime {clock(walltime_s)} may leave nothing to serve in: a start may take {job.start_timeout:g} s "
            f"(start-timeout), and the last {job.drain_before:g} s take no requests (drain-before). Raise it."
        )
    if isinstance(job, Workers) and walltime_s < LEAST_S:
        yield (
            f"walltime {clock(walltime_s)} leaves little to work in: each job starts Python first, and its workers "
            f"begin no chunk in its last {drain_margin(walltime_s):g} s. Raise it to what many chunks take."
        )


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")[:500]
