"""Short jobs that show what a site's nodes have and whom they reach; see ``sonic-parsl doctor --probe``."""

from __future__ import annotations

import asyncio
import hmac
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from parsl.jobs.states import JobState
from parsl.providers.base import ExecutionProvider

from sonic_parsl.errors import PoolError
from sonic_parsl.executors.batch.dialects import watch_jobs
from sonic_parsl.executors.batch.providers import make_provider
from sonic_parsl.executors.batch.queue_word import why_waiting
from sonic_parsl.executors.batch.undertaker import Undertaker
from sonic_parsl.executors.servers.block_book import ENDED
from sonic_parsl.executors.site import OTHER_RUN_DIR, put_own_bin_on_path, runs_of
from sonic_parsl.folders import make_folder
from sonic_parsl.ports import free_port
from sonic_parsl.protocol import VERSION, decode, encode
from sonic_parsl.server.probe_job import Errand, Hello, Needs, Visit, Visited
from sonic_parsl.site import Count, Job, ServerGroup, SiteFile, packaged_models

QUEUE_S, RUN_S = 300.0, 30.0
"""For a job to be started, and then to call."""
VISIT_S = 30.0
POLL_S = 1.0
MAX_LINE = 2**16
WORKERS = "workers"
PYTHON = ".".join(map(str, sys.version_info[:2]))

Answer = tuple[bool, str]
"""Whether it is well, and a sentence."""


@dataclass
class Trial:
    """A job of the probe, and who called from it.

    Attributes
    ----------
    name
        ``workers`` or ``servers <group>``.
    folder
        Of its script and what it writes.
    problem
        Why it did not call.
    """

    name: str
    settings: Job
    provider: ExecutionProvider
    folder: Path
    job_id: str | None = None
    problem: str | None = None
    callers: list[Caller] = field(default_factory=list)

    @property
    def nodes(self) -> int:
        """On how many nodes its processes are started."""
        return 1 if self.settings.launcher == "single-node" else self.settings.nodes or 1


@dataclass
class Caller:
    """A process of a job that called the driver."""

    hello: Hello
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


def probe(settings: SiteFile) -> list[Answer]:
    """Submit a short job of each kind through the site's own providers, and tell what they show.

    What it submits is cancelled, and what it opens is closed, however it ends.

    Raises
    ------
    ConfigError
        The site's words or the driver's address are wrong, or its folder cannot be made.
    """
    put_own_bin_on_path()
    folder = runs_of(settings) / f"probe-{uuid.uuid4().hex[:12]}"
    make_folder(folder, hint=OTHER_RUN_DIR, mode=0o700)
    undertaker = Undertaker()
    try:
        trials = [_prepare(name, job, folder, undertaker) for name, job in settings.jobs().items()]
        return asyncio.run(_run(settings, trials))
    finally:
        undertaker.close()
        shutil.rmtree(folder, ignore_errors=True)  # a job that is just being cancelled may still write


def _prepare(name: str, job: Job, root: Path, undertaker: Undertaker) -> Trial:
    provider = make_provider(job, count=Count())
    folder = root / name.replace(" ", "-")
    folder.mkdir(mode=0o700)
    provider.script_dir = str(folder)
    watch_jobs(provider, undertaker)
    return Trial(name, job, provider, folder)


async def _run(settings: SiteFile, trials: list[Trial]) -> list[Answer]:
    host, token = settings.driver.ipv4, uuid.uuid4().hex
    port = free_port(host, settings.driver.port_range)

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _receive(trials, token, reader, writer)

    server = await asyncio.start_server(receive, host, port, limit=MAX_LINE)
    try:
        for trial in trials:
            errand = _errand(settings, trial, f"{host}:{port}", token)
            python = shlex.quote(sys.executable) if errand.needs and settings.shared_filesystem else "python3"
            await asyncio.to_thread(_submit, trial, errand, python)
        await asyncio.gather(*(_await_call(trial) for trial in trials))
        return [answer for trial in trials for answer in _about(trial, f"{host}:{port}")] + await _reach(trials)
    finally:
        server.close()
        for trial in trials:
            _end(trial)


def _errand(settings: SiteFile, trial: Trial, driver: str, token: str) -> Errand:
    group, ports = trial.settings, settings.driver.port_range
    if not isinstance(group, ServerGroup):
        return Errand(driver, token, trial.name, port_range=ports)
    gpu = settings.device(group.device).is_gpu
    repository = str(group.repository(packaged_models())) if settings.shared_filesystem else None
    needs = Needs(group.runtime, group.image, group.binary, gpu, repository)
    return Errand(driver, token, trial.name, group.address, ports, needs)


async def _receive(trials: list[Trial], token: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a call; who is none of our jobs is not listened to."""
    try:
        hello = decode(Hello, await asyncio.wait_for(reader.readline(), RUN_S))
    except (PoolError, ValueError, OSError, asyncio.TimeoutError):
        writer.close()
        return
    trial = next((trial for trial in trials if trial.name == hello.job), None)
    if trial is None or not hmac.compare_digest(hello.token, token):
        writer.close()
        return
    trial.callers.append(Caller(hello, reader, writer))


# Jobs -----------------------------------------------------------------------------


def _submit(trial: Trial, errand: Errand, python: str) -> None:
    """Submit its job, with the interpreter that a run would use; the token stays in the script."""
    command = f"echo {errand.pack()} | {python} -m {Errand.__module__}"
    try:
        trial.job_id = trial.provider.submit(command, 1, "sonic-parsl-probe")
    except Exception as error:  # noqa: BLE001 - each provider has errors of its own
        trial.problem = f"its job cannot be submitted: {_line(str(error))}"
    if trial.job_id is None and trial.problem is None:
        trial.problem = "the batch system refuses its job; sonic-parsl doctor without --probe says why"


async def _await_call(trial: Trial) -> None:
    """Wait until a job calls, or note why it does not."""
    submitted, running = time.monotonic(), None
    while trial.problem is None and len(trial.callers) < trial.nodes:
        (status,) = await asyncio.to_thread(trial.provider.status, [trial.job_id])
        await asyncio.sleep(POLL_S)  # so that the call of a job that has just ended is heard
        now = time.monotonic()
        if status.state == JobState.RUNNING:
            running = running or now
        if len(trial.callers) >= trial.nodes:
            return
        if status.state in ENDED or (running is not None and now - running > RUN_S):
            trial.problem = _silence(trial, ended=status.state in ENDED)
        elif running is None and now - submitted > QUEUE_S:
            why = await asyncio.to_thread(why_waiting, trial.provider, str(trial.job_id))
            trial.problem = f"its job was not started within {QUEUE_S:g} s: {_line(why)}. Try when the queue is shorter"


def _silence(trial: Trial, *, ended: bool) -> str:
    said = [
        line for path in sorted(trial.folder.glob("*.*err*")) for line in path.read_text(errors="replace").split("\n")
    ]
    last = next((line for line in reversed(said) if line.strip()), "")
    if "cannot reach the driver" in last:
        return (
            f"{_line(last)}. Correct the driver's address in the site file, or let the nodes through to its port-range"
        )
    called = f"only {len(trial.callers)} of its {trial.nodes} nodes have called" if trial.callers else "has not called"
    how = f"its job ended and {called}" if ended else f"its job has run for {RUN_S:g} s and {called}"
    hint = "Let worker-init prepare an environment with sonic-parsl on the node"
    return f"{how}: {_line(last) or 'it wrote nothing'}. {hint}"


def _end(trial: Trial) -> None:
    for caller in trial.callers:
        caller.writer.close()
    if trial.job_id is not None:
        trial.provider.cancel([trial.job_id])


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")[:500]


# What they show --------------------------------------------------------------------


def _about(trial: Trial, driver: str) -> Iterator[Answer]:
    if trial.problem is not None:
        yield False, f"{trial.name}: {trial.problem}."
    for hello in (caller.hello for caller in trial.callers):
        if hello.version != VERSION:
            text = f"has sonic-parsl {hello.version}, and here is {VERSION}. Install the same version everywhere."
        elif hello.python != PYTHON:
            text = f"has Python {hello.python}, and here is {PYTHON}. Use the same one everywhere."
        else:
            yield True, f"{trial.name}: {hello.node} has sonic-parsl {VERSION} and reaches the driver at {driver}"
            yield from _equipment(trial, hello)
            continue
        yield False, f"{trial.name}: {hello.node} {text}"


def _equipment(trial: Trial, hello: Hello) -> Iterator[Answer]:
    """Say what a node lacks for a server."""
    yield from ((False, f"{trial.name}: {hello.node}: {problem}") for problem in hello.lacks)
    if isinstance(trial.settings, ServerGroup) and not hello.lacks:
        yield True, f"{trial.name}: {hello.node} has what runtime {trial.settings.runtime} needs"


async def _reach(trials: list[Trial]) -> list[Answer]:
    """Let the workers' jobs visit the ports of the servers' jobs."""
    servers = [(trial, caller.hello) for trial in trials if trial.name != WORKERS for caller in trial.callers]
    workers = [caller for trial in trials if trial.name == WORKERS for caller in trial.callers]
    answers: list[Answer] = []
    for worker in workers if servers else []:
        visit = Visit({hello.id: hello.address for _, hello in servers})
        try:
            worker.writer.write(encode(visit) + b"\n")
            line = await asyncio.wait_for(worker.reader.readline(), VISIT_S * len(servers))
            problems = decode(Visited, line).problems
        except (PoolError, OSError, asyncio.TimeoutError):
            answers.append((False, f"{WORKERS}: the job on {worker.hello.node} ended or fell silent. Try again."))
            continue
        answers += [_reached(trial, hello, worker.hello.node, problems.get(hello.id)) for trial, hello in servers]
    return answers


def _reached(trial: Trial, hello: Hello, worker: str, problem: str | None) -> Answer:
    if problem is None:
        return True, f"{trial.name}: {hello.address} on {hello.node} is reached from the workers' {worker}"
    return False, (
        f"{trial.name}: the workers' {worker} cannot reach {hello.address} on {hello.node}: {_line(problem)}. "
        "Name an address of the servers' nodes that the workers reach (`address` of the group), or open the ports."
    )
