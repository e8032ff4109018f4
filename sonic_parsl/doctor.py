"""What a machine lacks for a site, and how to get it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from sonic_parsl import site as site_file
from sonic_parsl.errors import ConfigError, SonicError
from sonic_parsl.executors.batch.dialects import DIALECTS
from sonic_parsl.executors.checks.address_check import loopback_problem
from sonic_parsl.executors.checks.probe import probe
from sonic_parsl.executors.checks.rehearsal import objections, silence
from sonic_parsl.executors.checks.static_check import ask_static
from sonic_parsl.repository import check
from sonic_parsl.server.runtimes import runtime
from sonic_parsl.site import Job, ServerGroup, SiteFile
from sonic_parsl.workflows import samples

COMMANDS = {"slurm": "sbatch", "htcondor": "condor_submit", "gridengine": "qsub", "pbspro": "qsub", "lsf": "bsub"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    ok: bool
    text: str


def examine(site_name: str, *, with_probe: bool = False) -> list[Finding]:
    """Look at everything that a run at a site needs.

    Parameters
    ----------
    with_probe
        Submit a short job of each kind, too, which shows what the nodes have and whom they reach.

    Raises
    ------
    ConfigError
        The site file itself is missing or wrong.
    """
    path = site_file.find(site_name)
    settings = site_file.read(path)
    findings = [
        Finding(ok=True, text=f"site file {path}"),
        *_driver(settings),
        *_schedulers(settings),
        *(finding for label, group in settings.servers.items() for finding in _group(label, group, settings)),
        *_samples(),
    ]
    return [*findings, *(Finding(ok, text) for ok, text in probe(settings))] if with_probe else findings


def _driver(settings: SiteFile) -> Iterator[Finding]:
    try:
        address = settings.driver.ipv4
    except ConfigError as error:
        yield Finding(ok=False, text=f"driver: {error}")
        return
    problem = loopback_problem(settings)
    yield Finding(ok=problem is None, text=problem or f"driver: address {address}")


def _schedulers(settings: SiteFile) -> Iterator[Finding]:
    answering = set()
    for name in sorted({job.provider for job in settings.jobs().values()}):
        finding = _scheduler(name)
        yield finding
        if finding.ok:
            answering.add(name)
    for label, job in settings.jobs().items():
        if job.provider in answering:
            yield from _job(label, job)


def _job(label: str, job: Job) -> Iterator[Finding]:
    problems = list(objections(job))
    yield from (Finding(ok=False, text=f"{label}: {problem}") for problem in problems)
    if not problems and DIALECTS[job.provider].rehearsal is not None:
        yield Finding(ok=True, text=f"{label}: {job.provider} would take its job")


def _scheduler(name: str) -> Finding:
    command = COMMANDS.get(name)
    if command is None:
        return Finding(ok=True, text=f"provider {name} needs no command")
    if shutil.which(command) is None:
        return Finding(ok=False, text=f"provider {name}: there is no {command} here. Log in to a submit node.")
    if (problem := silence(name)) is not None:
        return Finding(ok=False, text=f"provider {name}: {problem}. Is the batch system up, and this a submit node?")
    return Finding(ok=True, text=f"provider {name}: {command} is {shutil.which(command)}, and it answers")


def _group(label: str, group: ServerGroup, settings: SiteFile) -> Iterator[Finding]:
    if group.static:
        yield from (Finding(ok, text) for ok, text in ask_static(label, group))
        return
    backends, what = None, f"servers {label}: runtime {group.runtime}"
    try:
        gpu = settings.device(group.device).is_gpu
        engine = runtime(group.runtime, image=group.image, binary=group.binary, gpu=gpu)
    except ConfigError as error:
        yield Finding(ok=False, text=f"{what}: {error}")
    else:
        # The wheel is in the user's cache, which nodes share; the others are whatever a node has.
        if group.provider == "local" or (group.runtime == "wheel" and settings.shared_filesystem):
            problems = engine.problems()
            yield from _findings(problems, what)
            backends = None if problems else engine.backends()
        else:
            yield Finding(ok=True, text=f"{what} is for the nodes to have; --probe looks")
    root = group.repository(site_file.packaged_models())
    yield from _findings(check(root, group.serve, backends=backends), f"servers {label}: models {root}")


def _findings(problems: list[str], good: str) -> Iterator[Finding]:
    if not problems:
        yield Finding(ok=True, text=good)
    for problem in problems:
        yield Finding(ok=False, text=f"{good}: {problem}")


def _samples() -> Iterator[Finding]:
    try:
        yield Finding(ok=True, text=f"samples in {samples.path(samples.TTBAR[0]).parent}")
    except SonicError as error:
        yield Finding(ok=False, text=str(error))
