"""What the table of servers says of a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from typing_extensions import override

from sonic_parsl.errors import ModelMismatchError, ModelNotFoundError, PoolLostError
from sonic_parsl.poolref import Fallback
from sonic_parsl.protocol import ServedModel, ServerTable


class Offer(NamedTuple):
    """How a server serves a model: what must be the same for all requests of a call.

    Attributes
    ----------
    numeric_kind
        How it counts.
    artifact_digest
        What exactly is served.
    """

    numeric_kind: str
    artifact_digest: str

    @classmethod
    def of(cls, model: ServedModel) -> Offer:
        """Return the offer of a model in the table."""
        return cls(model.numeric_kind, model.artifact_digest)

    @override
    def __str__(self) -> str:
        return f"{self.numeric_kind}, artifact digest {self.artifact_digest[:12] or 'unknown'}"


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

    Models that can be told apart by digest come before those of servers that tell none.

    Raises
    ------
    ModelMismatchError
        Two servers have different models under this name and version.
    ModelNotFoundError
        Servers are ready, none is starting, and none has it.
    """
    for state in ("ready", "draining"):
        fits = [
            (model, entry.info.id)
            for entry in table.servers
            if entry.state == state
            for model in entry.info.models
            if model.name == name and version in {None, model.version} and set(tags) <= set(model.tags)
        ]
        if fits:
            newest = max(_age(model) for model, _ in fits)
            return _agreed([fit for fit in fits if _age(fit[0]) == newest])
    if table.ready and not any(entry.state == "starting" for entry in table.servers):
        raise ModelNotFoundError(
            f"No server of the pool has model {described(name, version, tags)}.",
            hint=f"They have: {_known(table) or 'no model at all'}.",
        )
    return None


def nobody_will(table: ServerTable | None, fallback: Fallback | None, name: str) -> PoolLostError | None:
    """Return why this process should compute a model itself though the pool is not lost; None where it should wait.

    Where the pool's owner starts servers, it is the owner who says that there is no hope.
    """
    if table is None or fallback is None or fallback.patient:
        return None
    if name not in {model.name for model in fallback.models}:
        return None
    if any(entry.state == "starting" or name in {m.name for m in entry.info.models} for entry in table.servers):
        return None
    return PoolLostError(f"The pool has no server left with model {name}.")


def described(name: str, version: str | None, tags: Collection[str]) -> str:
    """Return what was asked for, for people."""
    return " ".join((f"'{name}'", *([f"version {version}"] if version else []), *map("tag {}".format, tags)))


def server_of(table: ServerTable, model: ServedModel) -> str:
    """Return the id of a server that has this very model; empty where there is none."""
    return next((entry.info.id for entry in table.servers if model in entry.info.models), "")


def _agreed(fits: Sequence[tuple[ServedModel, str]]) -> ServedModel:
    """Return the model that all servers mean by one name and version."""
    first, server = min(fits, key=lambda fit: not fit[0].source_digest)
    for other, other_server in fits:
        check_same(first, server, other, other_server)
    return first


def check_same(one: ServedModel, server: str, other: ServedModel, other_server: str) -> None:
    """Check that two servers mean the same model: by digest, or by its tensors where one tells no digest.

    A server without a name is this process, which may compute models of a pool that is lost.

    Raises
    ------
    ModelMismatchError
        They do not; both are named, with their digests.
    """
    if one.source_digest and other.source_digest:
        same = one.source_digest == other.source_digest
    else:
        same = (one.inputs, one.outputs) == (other.inputs, other.outputs)
    if not same:
        raise ModelMismatchError(
            f"{_who(server).capitalize()} and {_who(other_server)} have different models under the name {one.name} version "
            f"{one.version}: source digests {_short(one)} and {_short(other)}.",
            hint="Give one of them another name, or leave it out of the pool.",
        )


def _who(server: str) -> str:
    return f"server {server}" if server else "this process"


def _short(model: ServedModel) -> str:
    return model.source_digest[:12] or "unknown, with other tensors"


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
