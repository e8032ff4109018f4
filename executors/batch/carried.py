"""What jobs take along where their nodes see none of the driver's files: HTCondor brings it into the job's folder.

A job starts in that folder, so everything there has a relative name; only the job's owner can read it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coffea.processor.executor import FileMeta, WorkItem
from parsl import curvezmq
from parsl.executors import HighThroughputExecutor
from parsl.providers.base import ExecutionProvider

from sonic_parsl.errors import DataError
from sonic_parsl.poolref import MODELS_ENV, POOL_ENV, Fallback
from sonic_parsl.repository.digests import is_ignored
from sonic_parsl.server.spec import ServerSpec

UMASK = "umask 077\n"
INPUTS, MODELS = "inputs", "models"
INPUTS_ENV = "SONIC_PARSL_INPUTS"
"""Environment variable of workers that names the folder of the input files that they brought along."""
INIT = f"""
chmod 700 certificates
export {POOL_ENV}="$PWD/%s" {INPUTS_ENV}="$PWD/{INPUTS}" {MODELS_ENV}="$PWD/{MODELS}"
"""
"""Parsl takes certificates only from a folder that is for their owner."""


def can_carry(provider: ExecutionProvider) -> bool:
    """Return whether jobs of this batch system take files along."""
    return hasattr(provider, "transfer_input_files")


def keep_scripts_private(provider: ExecutionProvider) -> None:
    """Let nobody else read the jobs' scripts, which carry keys, nor what launchers make of them on the node."""
    folder = getattr(provider, "script_dir", None)
    if folder is not None:
        Path(folder).chmod(0o700)
    before = getattr(provider, "worker_init", None)
    if before is not None and not before.startswith(UMASK):
        provider.worker_init = UMASK + before


def take_along(provider: ExecutionProvider, *paths: Path) -> None:
    """Let jobs have files and folders, in the folder where they start."""
    # A new list, for Parsl's providers share the one they have by default.
    provider.transfer_input_files = [*provider.transfer_input_files, *map(str, paths)]


def equip_servers(provider: ExecutionProvider, spec: ServerSpec, folder: Path) -> ServerSpec:
    """Let the jobs of servers bring their models along; return what their agents are told then.

    Parameters
    ----------
    folder
        Where to put what is sent; it does not exist yet.
    """
    for model in spec.models:
        link_tree(spec.repository / model, folder / model)
    take_along(provider, folder)
    return replace(spec, repository=Path(folder.name))


def link_tree(source: Path, target: Path) -> None:
    """Make `target` a tree of the same folders, with links to the files of `source`; hidden ones are left out."""
    for parent, folders, names in os.walk(source, followlinks=True):
        folders[:] = [name for name in folders if not is_ignored(name)]
        there = target / Path(parent).relative_to(source)
        there.mkdir(parents=True)
        for name in names:
            if not is_ignored(name):
                (there / name).symlink_to(Path(parent, name).absolute())


def equip_workers(
    executor: HighThroughputExecutor,
    run_dir: Path,
    *,
    pool: Path,
    inputs: Iterable[str],
    fallback: Fallback | None = None,
) -> None:
    """Let the jobs of workers bring the key to the interchange, the pool's file and their input along, as far as the batch system can.

    Parameters
    ----------
    run_dir
        The run's folder, for what is sent.
    pool
        The pool's file.
    inputs
        Names of files as the analysis' fileset has them; what is not on this machine is left out.
    fallback
        What workers may compute themselves.

    Raises
    ------
    DataError
        One of `inputs` is not there.
    """
    if not can_carry(executor.provider):
        return
    files, repository = run_dir / INPUTS, run_dir / MODELS
    for folder in (files, repository):
        folder.mkdir(mode=0o700)
    for name in inputs:
        if "://" not in name:
            _link_input(name, files)
    for model in fallback.models if fallback else ():
        link_tree(Path(model.folder), repository / model.name)
    executor.cert_dir = curvezmq.create_certificates(run_dir)
    executor.launch_cmd = executor.launch_cmd.replace("{cert_dir}", "certificates").replace("{logdir}", "logs")
    take_along(executor.provider, Path(executor.cert_dir), pool, files, repository)
    executor.provider.worker_init += INIT % pool.name


def _link_input(name: str, folder: Path) -> None:
    link = folder / _name_on_node(name)
    if not Path(name).is_file():
        raise DataError(f"{name} cannot be sent to the workers: there is no such file.", hint="Correct its name.")
    if not link.is_symlink():  # the same file may be in two datasets
        link.symlink_to(Path(name).absolute())


def _name_on_node(name: str) -> str:
    """Return the name of an input file on the workers' nodes: files of all folders lie in one there."""
    return f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-{Path(name).name}"


def on_this_node(name: str) -> str | None:
    """Return where this node has a file that the fileset calls `name`; None unless the job brought it along."""
    folder = os.environ.get(INPUTS_ENV)
    path = Path(folder or "", _name_on_node(name))
    return str(path) if folder and path.is_file() else None


@dataclass(frozen=True)
class WhereItLies:
    """Runs coffea's work on a file where this node has it; its name to the analysis stays the fileset's."""

    work: Callable[..., Any]

    def __call__(self, item: FileMeta | WorkItem, *args: Any, **kwargs: Any) -> Any:
        """Return what the work returns, with the name that the driver knows."""
        here = on_this_node(item.filename)
        if here is None:
            return self.work(item, *args, **kwargs)
        if isinstance(item, FileMeta):
            found = self.work(FileMeta(item.dataset, here, item.treename, item.metadata), *args, **kwargs)
            return type(found)(
                FileMeta(one.dataset, item.filename, one.treename, one.metadata, item.preload) for one in found
            )
        metadata = {**(item.usermeta or {}), "filename": item.filename}
        out = self.work(replace(item, filename=here, usermeta=metadata), *args, **kwargs)
        return {**out, "processed": {item}} if isinstance(out, dict) and "processed" in out else out
