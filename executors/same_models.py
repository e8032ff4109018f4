"""Whether a pool that a run attaches to serves the models that the run names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from sonic_parsl.client.onnx_models import OnnxModels
from sonic_parsl.errors import ModelMismatchError
from sonic_parsl.pool.attached import AttachedPool
from sonic_parsl.protocol import ServedModel, ServerTable
from sonic_parsl.repository import ModelFolder, read, served

logger = logging.getLogger(__name__)


def compare_models(root: Path, pool: AttachedPool, wait_ready: Callable[[], ServerTable]) -> None:
    """Check that a pool, which is started here, serves the models of a repository.

    Parameters
    ----------
    wait_ready
        Waits for a server, which says what there is; where the pool is lost, its users may compute for themselves.

    Raises
    ------
    RepositoryError
        The repository cannot be read.
    ModelMismatchError
        The pool serves something else.
    PoolLostError
        It does not come to serve anything.
    """
    folders = read(root)
    pool.start()
    if not pool.table.ready:
        logger.warning("The pool has no server yet; its models are compared with those of %s once it has one.", root)
    ready = wait_ready().ready
    offered = [model for entry in ready for model in entry.info.models]
    if not ready and (fallback := pool.ref.fallback) is not None:
        offered = list(OnnxModels(fallback).all())
    check_same_models(folders, root, offered)


def check_same_models(folders: Iterable[ModelFolder], root: Path, offered: Iterable[ServedModel]) -> None:
    """Check that a pool serves the models of a repository, as far as it serves any of their names.

    Parameters
    ----------
    folders, root
        The models, and the repository that they are in.
    offered
        What the pool serves. What tells no digest is compared by its tensors.

    Raises
    ------
    ModelMismatchError
        A model was made from something else, versions differ, or the pool serves none of the models.
    """
    theirs: dict[str, dict[str, ServedModel]] = {}
    for model in sorted(offered, key=lambda one: one.source_digest):  # of servers of a version, one that has a digest
        theirs.setdefault(model.name, {})[model.version] = model
    ours = {folder.name: {model.version: model for model in served(folder)} for folder in folders}
    common = sorted(ours.keys() & theirs.keys())
    wrong = [text for name in common for text in _differences(name, ours[name], theirs[name])]
    if not common:
        wrong = [f"it serves none of {', '.join(sorted(ours))}, only {', '.join(sorted(theirs)) or 'no model at all'}"]
    if not wrong and (unknown := sorted(ours.keys() - theirs.keys())):
        logger.warning("No server of the pool has %s of %s now; it is not compared.", ", ".join(unknown), root)
    if wrong:
        raise ModelMismatchError(
            f"The pool does not serve the models of {root}: {'; '.join(wrong)}.",
            hint="Name the repository that the pool was started with, or start a pool with this one: "
            f"`sonic-parsl pool start --models {root} --name ...`.",
        )


def _differences(name: str, ours: Mapping[str, ServedModel], theirs: Mapping[str, ServedModel]) -> Iterator[str]:
    if theirs.keys() == {""}:  # a KServe server that lists no versions has one
        theirs = {list(ours)[-1]: theirs[""]}
    for version in sorted(ours.keys() | theirs.keys()):
        mine, its = ours.get(version), theirs.get(version)
        if not _is_same(mine, its):
            yield f"{name} version {version} has {_digest(its)} in the pool and {_digest(mine)} in the folder"


def _is_same(one: ServedModel | None, other: ServedModel | None) -> bool:
    if one is None or other is None:
        return False
    if one.source_digest and other.source_digest:
        return (one.source_digest, sorted(one.tags)) == (other.source_digest, sorted(other.tags))
    pairs = ((one.inputs, other.inputs), (one.outputs, other.outputs))
    return all(mine == its for mine, its in pairs if mine and its)  # some folders leave them to the running model


def _digest(model: ServedModel | None) -> str:
    if model is None:
        return "no file"
    tags = f", tags {', '.join(sorted(model.tags))}" if model.tags else ""
    return f"source digest {model.source_digest[:12]}{tags}" if model.source_digest else "no digest, and other tensors"
