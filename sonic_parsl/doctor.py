"""What a machine lacks for a site, and how to get it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sonic_parsl import site as site_file
from sonic_parsl.errors import SonicError
from sonic_parsl.repository import check
from sonic_parsl.server.runtimes import runtime
from sonic_parsl.site import PACKAGED_MODELS, SiteFile
from sonic_parsl.workflows import samples

COMMANDS = {"slurm": "sbatch", "htcondor": "condor_submit", "gridengine": "qsub", "pbspro": "qsub", "lsf": "bsub"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    ok: bool
    text: str


def examine(site_name: str) -> list[Finding]:
    """Look at everything that a run at a site needs.

    Raises
    ------
    ConfigError
        The site file itself is missing or wrong.
    """
    path = site_file.find(site_name)
    settings = site_file.read(path)
    return [
        Finding(ok=True, text=f"site file {path}"),
        *_schedulers(settings),
        *(finding for label in settings.servers for finding in _group(label, settings)),
        *_samples(),
    ]


def _schedulers(settings: SiteFile) -> Iterator[Finding]:
    for name in sorted({settings.workers.provider, *(group.provider for group in settings.servers.values())}):
        command = COMMANDS.get(name)
        if command is None:
            yield Finding(ok=True, text=f"provider {name} needs no command")
        elif shutil.which(command):
            yield Finding(ok=True, text=f"provider {name}: {command} is {shutil.which(command)}")
        else:
            yield Finding(ok=False, text=f"provider {name}: there is no {command} here. Log in to a submit node.")


def _group(label: str, settings: SiteFile) -> Iterator[Finding]:
    group = settings.servers[label]
    gpu = settings.device(group.device).family == "gpu"
    engine = runtime(group.runtime, image=group.image, binary=group.binary, gpu=gpu)
    problems = engine.problems()
    yield from _findings(problems, f"servers {label}: runtime {group.runtime}")
    folder = site_file.packaged_folder().parent / "workflows" / "models"
    root = folder if group.models == PACKAGED_MODELS else Path(group.models)
    backends = None if problems else engine.backends()
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
