"""What the table of servers says of a model."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sonic_parsl.errors import ModelNotFoundError
from sonic_parsl.protocol import ServedModel, ServerTable


class ModelKey(NamedTuple):
    """What servers must agree on to share a call's requests."""

    name: str
    version: str
    source_digest: str


def key_of(model: ServedModel) -> ModelKey:
    """Return the key of a model."""
    return ModelKey(model.name, model.version, model.source_digest)


def find_model(
    table: ServerTable, name: str, *, version: str | None = None, tags: Collection[str] = ()
) -> ServedModel | None:
    """Return the newest version that matches; None where that cannot be said yet.

    Raises
    ------
    ModelNotFoundError
        Servers are ready, none is starting, and none has it.
    """
    for state in ("ready", "draining"):
        models = [model for entry in table.servers if entry.state == state for model in entry.info.models]
        fits = [m for m in models if m.name == name and version in {None, m.version} and set(tags) <= set(m.tags)]
        if fits:
            return max(fits, key=_age)
    if table.ready and not any(entry.state == "starting" for entry in table.servers):
        wanted = " ".join((f"'{name}'", *([f"version {version}"] if version else []), *map("tag {}".format, tags)))
        raise ModelNotFoundError(
            f"No server of the pool has model {wanted}.", hint=f"They have: {_known(table) or 'no model at all'}."
        )
    return None


def states(table: ServerTable | None) -> str:
    """Return how many servers are in which state, for people."""
    counts = [sum(entry.state == state for entry in table.servers) for state in _STATES] if table else [0, 0, 0]
    return ", ".join(f"{count} {state}" for count, state in zip(counts, _STATES, strict=True))


_STATES = ("ready", "starting", "draining")


def _age(model: ServedModel) -> tuple[int, str]:
    return (int(model.version) if model.version.isdecimal() else -1, model.version)


def _known(table: ServerTable) -> str:
    models = {(m.name, *_age(m), m.tags) for entry in table.ready for m in entry.info.models}
    return ", ".join(
        f"{name} version {version}" + (f" [{', '.join(tags)}]" if tags else "")
        for name, _, version, tags in sorted(models)
    )
