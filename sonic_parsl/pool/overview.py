"""How a user's pools stand now: found by the files of their runs, asked by their registries."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sonic_parsl.errors import ConfigError, PoolLostError, SonicError
from sonic_parsl.pool import named
from sonic_parsl.pool.attached import check_private
from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import VERSION, BlockEntry, ServerEntry, ServerTable
from sonic_parsl.rpc import RegistryStub

ASK_S = 5.0
"""A registry that does not answer within this time, in seconds, is told of as one that does not."""
REF = "pool.json"

State = Literal["queued", "starting", "ready", "draining", "lost"]


@dataclass(frozen=True)
class ServerStatus:
    """A server; or a block of its group that has none yet, or none any more.

    Attributes
    ----------
    state
        ``queued``: the job waits in the batch system; ``starting``: it runs, the models do not answer yet;
        ``ready``; ``draining``: it takes no new requests; ``lost``: it failed, and `reason` says why.
    id, node, device
        Name in the pool, host and kind of device; null until the server has joined.
    block, job
        Parsl's block and the batch system's job; empty where somebody else runs the server.
    models
        What it serves, as ``name:version``.
    requests, rows, failures
        What it has answered and refused since its start.
    queue_ms
        Mean time that a request waited in it, in ms; null before the first one.
    walltime_left_s
        Until its job ends, in seconds; null where nobody says.
    reason
        Why it was lost; empty otherwise.
    """

    state: State
    block: str
    job: str
    id: str | None = None
    node: str | None = None
    device: str | None = None
    models: tuple[str, ...] = ()
    requests: int = 0
    rows: int = 0
    failures: int = 0
    queue_ms: float | None = None
    walltime_left_s: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class GroupStatus:
    """A server group of the site file."""

    name: str
    servers: tuple[ServerStatus, ...]


@dataclass(frozen=True)
class PoolStatus:
    """A pool: of one run, or one with a name that outlives its runs.

    Attributes
    ----------
    name
        Name of the pool; null where it is a run's own.
    run_id
        Which run; null where its file cannot be read.
    folder
        Where the run's files are.
    groups
        Its server groups, by name.
    lost
        Why the pool was given up; null while it was not.
    problem
        Why nothing is known of it, in a sentence; null where it answered.
    """

    name: str | None
    run_id: str | None
    folder: str
    groups: tuple[GroupStatus, ...] = ()
    lost: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Status:
    """All pools of a user that are up.

    Attributes
    ----------
    schema
        Version of this record.
    version
        Version of sonic-parsl.
    time
        When they were asked, in seconds since the epoch.
    """

    schema: Literal[1]
    version: str
    time: float
    pools: tuple[PoolStatus, ...]


def look(*, pool: str | None = None, run_dir: Path | None = None) -> Status:
    """Ask this user's pools how they stand; takes a few seconds at most.

    Parameters
    ----------
    pool
        Only the one of this name.
    run_dir
        Only the run with this folder, or the runs in it.

    Raises
    ------
    ConfigError
        There is no such pool or run.
    """
    folders = dict(_folders(pool, run_dir))
    return asyncio.run(_ask_all(folders))


# Where they are -------------------------------------------------------------------


def _folders(pool: str | None, run_dir: Path | None) -> Iterator[tuple[Path, str | None]]:
    """Yield the folder and the name of each pool."""
    if pool is not None:
        yield named.run_dir(named.find(pool).name), pool
        return
    if run_dir is not None:
        found = list(_runs_in(_and_inside(run_dir)))
        if not found:
            raise ConfigError(
                f"There is no run in {run_dir}.",
                hint="Name the folder of a run, or `run-dir` of the site file's driver. A run that has ended leaves none.",
            )
        yield from ((folder.absolute(), None) for folder in found)
        return
    yield from ((named.run_dir(record.name), record.name) for record in named.running() if record.is_up)
    # Whoever writes a Parsl configuration of their own has their pool in the temporary folder.
    own = [*named.runs_root().glob("*"), *Path(tempfile.gettempdir()).glob("sonic-parsl-*")]
    yield from ((folder, None) for folder in _runs_in(own))


def _and_inside(folder: Path) -> Iterator[Path]:
    yield folder
    with suppress(OSError):  # it is not there, or another user's
        yield from folder.iterdir()


def _runs_in(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield those that are a run's of this user."""
    for folder in folders:
        try:
            if (folder / REF).stat().st_uid == os.geteuid():
                yield folder
        except OSError:
            continue


# What they say --------------------------------------------------------------------


async def _ask_all(folders: dict[Path, str | None]) -> Status:
    asked = [_ask(folder, name) for folder, name in folders.items()]
    pools = await asyncio.gather(*asked)
    return Status(
        1, VERSION, time.time(), tuple(sorted(pools, key=lambda one: (one.name is None, one.name, one.folder)))
    )


async def _ask(folder: Path, name: str | None) -> PoolStatus:
    run_id = None
    try:
        check_private(folder / REF)
        ref = PoolRef.read(folder / REF)
        run_id = ref.run_id
        table = await _table(ref)
    except PoolLostError:
        where = ", ".join(ref.registries)
        problem = f"Nobody answers at {where}: the driver has ended, or this machine cannot reach it."
        return PoolStatus(name, run_id, str(folder), problem=problem)
    except SonicError as error:
        return PoolStatus(name, run_id, str(folder), problem=clean(str(error)))
    lost = None if table.lost is None else clean(table.lost)
    return PoolStatus(name, run_id, str(folder), _groups(table, time.time()), lost)


async def _table(ref: PoolRef) -> ServerTable:
    """Return the registry's table.

    Raises
    ------
    PoolLostError
        It does not answer.
    """
    stub = RegistryStub(ref)
    try:
        return await asyncio.wait_for(anext(stub.follow()), ASK_S)
    except asyncio.TimeoutError:
        raise PoolLostError(f"No table came within {ASK_S:g} s.") from None
    finally:
        await stub.close()


def _groups(table: ServerTable, now: float) -> tuple[GroupStatus, ...]:
    """Return the servers of a table by group.

    Parameters
    ----------
    now
        Seconds since the epoch.
    """
    groups: dict[str, list[ServerStatus]] = {}
    for server in table.servers:
        groups.setdefault(server.info.group, []).append(_of_server(server, now))
    for block in table.blocks:
        groups.setdefault(block.group, []).append(_of_block(block))
    return tuple(
        GroupStatus(clean(name), tuple(sorted(servers, key=lambda one: (one.block.zfill(20), one.id or ""))))
        for name, servers in sorted(groups.items())
    )


def _of_server(entry: ServerEntry, now: float) -> ServerStatus:
    info, load = entry.info, entry.load
    return ServerStatus(
        state=entry.state,
        block=info.block_id,
        job=clean(info.job_id),
        id=clean(info.id),
        node=clean(info.node),
        device=clean(info.kind),
        models=tuple(clean(f"{model.name}:{model.version}") for model in info.models),
        requests=load.requests,
        rows=load.rows,
        failures=load.failures,
        queue_ms=load.queue_ms / load.requests if load.requests else None,
        walltime_left_s=None if info.ends_at is None else max(0.0, info.ends_at - now),
    )


def _of_block(entry: BlockEntry) -> ServerStatus:
    return ServerStatus(entry.state, entry.block_id, clean(entry.job_id), reason=clean(entry.reason))


def clean(text: str) -> str:
    """Return text of another machine in one line, without what would steer a terminal."""
    line = " ".join(text.split())
    return "".join(char for char in line if unicodedata.category(char)[0] != "C")
