"""Parsl providers from a site file's words."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any, get_type_hints

from parsl.launchers.base import Launcher
from parsl.providers.base import ExecutionProvider
from pydantic import TypeAdapter, ValidationError

from sonic_parsl.errors import ConfigError
from sonic_parsl.executors.batch.dialects import DIALECTS, LAUNCHERS, LINES, Dialect, dialect_of
from sonic_parsl.executors.batch.htcondor import HTCondorProvider
from sonic_parsl.server.job import BEGAN_ENV
from sonic_parsl.site import WORDS, Count, Job
from sonic_parsl.walltime import seconds

WORD_OF = {
    "worker_init": "worker-init",
    "init_blocks": "count",
    "min_blocks": "count",
    "max_blocks": "count",
    "nodes_per_block": "nodes",
    "walltime": "walltime",
    "partition": "partition",
    "queue": "queue",
    "account": "account",
}
"""What Parsl's providers call what site files have words for: who could say it twice would be misunderstood."""
LAST_BYTES = 2**11
"""Of a job's stderr, to be told to a person."""


def make_provider(job: Job, *, count: Count) -> ExecutionProvider:
    """Return the Parsl provider that `job` asks for.

    Parameters
    ----------
    count
        Blocks, at least and at most.

    Raises
    ------
    ConfigError
        The provider has no such word or option, or something is said in several ways.
    """
    dialect = DIALECTS[job.provider]
    options = {name.replace("-", "_"): value for name, value in job.options.items()}
    _check_options(job, dialect, options)
    init = "\n".join(text for text in (dialect.init, job.worker_init) if text)
    arguments = {
        **dialect.defaults,
        "init_blocks": count.min,
        "min_blocks": count.min,
        "max_blocks": count.max,
        "worker_init": init,
    }
    words = _words(job, dialect)
    for twice in sorted(options.keys() & {name for said in words for name in said} - {LINES}):
        raise ConfigError(
            f"'{twice}' of provider {job.provider} is said twice, by a word and under options.", hint="Leave one out."
        )
    for said in (*words, options):
        lines = [text for text in (arguments.get(LINES), said.get(LINES)) if text]
        arguments |= {**said, **({LINES: "\n".join(lines)} if lines else {})}
    provider = dialect.provider(**arguments)
    if isinstance(provider, HTCondorProvider):
        provider.duration_s()  # of several, which one is meant?
    return provider


def walltime_of(provider: ExecutionProvider) -> float | None:
    """Return how long a provider's jobs are, in seconds; None where it does not say."""
    if isinstance(provider, HTCondorProvider):
        return provider.duration_s()  # HTCondor never hears of Parsl's own walltime
    walltime = getattr(provider, "walltime", None)
    return None if walltime is None else float(str(seconds(walltime)))


def note_beginning(provider: ExecutionProvider) -> None:
    """Let jobs tell their agents when they began: what ``worker_init`` does takes of their walltime, too."""
    init = getattr(provider, "worker_init", None)
    if init is not None and BEGAN_ENV not in init:
        dialect = dialect_of(provider)
        provider.worker_init = f'export {BEGAN_ENV}="$({dialect.began if dialect else Dialect.began})"\n{init}'


def said_walltime(job: Job, provider: ExecutionProvider) -> float | None:
    """Return how long a job is, in seconds, where its site file says it; Parsl's providers have defaults of their own."""
    if job.walltime is not None:
        return job.walltime
    return walltime_of(provider) if isinstance(provider, HTCondorProvider) else None


def last_words(provider: ExecutionProvider, label: str, block_id: str) -> str:
    """Return the end of what a block's job wrote to its stderr; nothing where no such file is here.

    Of jobs that run, or that a batch system does not name any more, Parsl's providers do not tell where it is.
    """
    # Parsl's own name for the job, to which each provider adds a time and an ending of its own.
    files = sorted(Path(provider.script_dir or ".").glob(f"*parsl.{label}.block-{block_id}.*err"))
    try:
        return files[-1].read_bytes()[-LAST_BYTES:].decode(errors="replace").strip() if files else ""
    except OSError as error:
        return f"its stderr cannot be read: {error.strerror}"


def _words(job: Job, dialect: Dialect) -> list[dict[str, Any]]:
    """Return what each word that the job uses is for the provider."""
    used = {word: value for word in WORDS if (value := getattr(job, word))}
    for word in used:
        if word not in dialect.words:
            raise ConfigError(
                f"Provider {job.provider} has no '{word}'.",
                hint=f"It has {', '.join(dialect.words)}; anything else that Parsl's provider takes goes under options.",
            )
    return [dialect.words[word](value) for word, value in used.items()]


def _check_options(job: Job, dialect: Dialect, options: dict[str, Any]) -> None:
    known = inspect.signature(dialect.provider).parameters
    types = get_type_hints(dialect.provider.__init__)
    words = {"worker-init", "count", *dialect.words}
    for option, value in options.items():
        if option not in known:
            close = difflib.get_close_matches(option, list(known), n=1)
            raise ConfigError(
                f"Provider {job.provider} has no option '{option}'.",
                hint=f"Did you mean '{close[0]}'?" if close else f"It has {', '.join(known)}.",
            )
        if (word := WORD_OF.get(option)) in words:
            raise ConfigError(
                f"The option '{option}' of provider {job.provider} is the site file's own word '{word}'.",
                hint=f"Say `{word}: ...` beside `options`, and not in it.",
            )
        _check_type(job.provider, option, value, types.get(option, _type_of(known[option].default)))
    launcher = options.get("launcher")
    if "launcher" in options and not isinstance(launcher, Launcher):  # one of Parsl's objects, which no file can hold
        ours = " or ".join(f"`launcher: {word}`" for word in LAUNCHERS)
        raise ConfigError(
            f"Options of provider {job.provider} cannot name the launcher {launcher!r}.",
            hint=f"On Slurm say {ours} outside of options; elsewhere leave it out.",
        )


def _type_of(default: object) -> Any:
    """Return what an argument should be of which only the default is known."""
    kind = type(default)
    return {type(None): Any, int: float}.get(kind, kind)  # a fraction of a 1 may do


def _check_type(name: str, option: str, value: object, wanted: Any) -> None:
    if isinstance(wanted, type) and issubclass(wanted, Launcher):
        return
    try:
        TypeAdapter(wanted).validate_python(value, strict=True)
    except ValidationError as error:
        raise ConfigError(
            f"The option '{option}' of provider {name} cannot be {value!r}: {error.errors()[0]['msg'].lower()}.",
            hint="What should be text stands in quotes: YAML reads 12:00:00 as a number.",
        ) from None
