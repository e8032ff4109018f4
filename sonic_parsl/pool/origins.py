"""What each model of a pool was made from: the first server says, all others have to agree.

A model that is replaced on disk while a pool is up would otherwise come in with the next server, and its
scores mix with those of the old one in one histogram.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sonic_parsl.errors import ModelMismatchError
from sonic_parsl.protocol import ServedModel, ServerInfo

WAY_OUT = "Give one of them another name, or start the pool again with one of them only."


@dataclass(frozen=True)
class Origin:
    """A digest, and the server that was the first to have it."""

    server_id: str
    digest: str


Key = tuple[str, str, str]
Origins = Mapping[Key, Origin]
"""By model, version and group: sources are the same in the whole pool (group ''), artifacts within a group."""


def remember(origins: Origins, info: ServerInfo) -> dict[Key, Origin]:
    """Return `origins` with the models of one more server.

    Raises
    ------
    ModelMismatchError
        One of them is not what an earlier server served under the same name and version.
    """
    known = dict(origins)
    for model in info.models:
        for key, digest, kind in _digests(model, info.group):
            first = known.setdefault(key, Origin(info.id, digest))
            if first.digest != digest:
                raise ModelMismatchError(
                    f"Server {info.id} serves model {model.name} version {model.version} with {kind} digest "
                    f"{digest[:12]}, server {first.server_id} has served it with {first.digest[:12]}.",
                    hint=WAY_OUT,
                )
    return known


def _digests(model: ServedModel, group: str) -> Iterator[tuple[Key, str, str]]:
    if model.source_digest:
        yield (model.name, model.version, ""), model.source_digest, "source"
    if model.artifact_digest:
        yield (model.name, model.version, group), model.artifact_digest, "artifact"
