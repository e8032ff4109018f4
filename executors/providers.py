"""Parsl providers from a site file's words."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from parsl.providers import (
    CondorProvider,
    GridEngineProvider,
    LocalProvider,
    LSFProvider,
    PBSProProvider,
    SlurmProvider,
)
from parsl.providers.base import ExecutionProvider

from sonic_parsl.errors import ConfigError
from sonic_parsl.site import Count, Job

PROVIDERS: dict[str, type[ExecutionProvider]] = {
    "local": LocalProvider,
    "slurm": SlurmProvider,
    "htcondor": CondorProvider,
    "gridengine": GridEngineProvider,
    "pbspro": PBSProProvider,
    "lsf": LSFProvider,
}


def make_provider(job: Job, *, count: Count, more_init: str = "") -> ExecutionProvider:
    """Return the Parsl provider that `job` asks for.

    Parameters
    ----------
    count
        Blocks, at least and at most.
    more_init
        Shell lines to run after the job's own ``worker-init``.

    Raises
    ------
    ConfigError
        The provider has no such option.
    """
    cls = PROVIDERS[job.provider]
    options = {name.replace("-", "_"): value for name, value in job.options.items()}
    _check_options(job.provider, cls, options)
    init = "\n".join(text for text in (job.worker_init, more_init) if text)
    blocks = {"init_blocks": count.min, "min_blocks": count.min, "max_blocks": count.max}
    return cls(**{**blocks, "worker_init": init, **options})


def _check_options(name: str, cls: type[ExecutionProvider], options: dict[str, Any]) -> None:
    known = list(inspect.signature(cls).parameters)
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            raise ConfigError(
                f"Provider {name} has no option '{option}'.",
                hint=f"Did you mean '{close[0]}'?" if close else f"It has {', '.join(known)}.",
            )
