"""How a user's pools stand, as a table for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sonic_parsl.pool.overview import GroupStatus, PoolStatus, ServerStatus, Status

NOTHING_RUNS = "No run and no pool of yours is up."
REMOVE = "A driver that was killed leaves its run's folder: remove those of runs that have ended."
STYLES = {"ready": "green", "draining": "yellow", "lost": "red", "queued": "dim", "starting": "cyan"}
COLUMNS = {"State": 8, "Block": 5, "Job": 9, "Node": 12}
NUMBERS = {"Requests": 8, "Rows": 5, "Queue ms": 5, "Left": 8}
"""Columns and their widths, in characters: with the models' names they fit into 80."""
HOUR_S, MINUTE_S = 3600, 60


def render(status: Status) -> RenderableType:
    """Return what a person reads; every text in it is plain, whatever brackets it holds."""
    if not status.pools:
        return Text(NOTHING_RUNS)
    silent = [pool for pool in status.pools if pool.problem is not None]
    parts = [part for pool in status.pools if pool not in silent for part in _pool(pool)]
    parts += [Text(f"{_name(pool)}: {pool.problem}", style="red") for pool in silent]
    return Group(*parts, *([Text(REMOVE)] if silent else []))


def _pool(pool: PoolStatus) -> Iterator[RenderableType]:
    yield Text(_name(pool), style="bold", overflow="fold")
    if pool.lost is not None:
        yield Padding(Text(f"It is lost: {pool.lost}", style="red"), (0, 0, 0, 2))
    if not pool.groups:
        yield Padding(Text("It has no servers yet."), (0, 0, 0, 2))
    for group in pool.groups:
        yield from _group(group)


def _name(pool: PoolStatus) -> str:
    return f"Run in {pool.folder}" if pool.name is None else f"Pool {pool.name}"


def _group(group: GroupStatus) -> Iterator[RenderableType]:
    counts = Counter(server.state for server in group.servers)
    yield Padding(
        Text(f"{group.name}: {', '.join(f'{count} {state}' for state, count in counts.items())}"), (0, 0, 0, 2)
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name, longest in COLUMNS.items():
        table.add_column(name, no_wrap=True, min_width=min(len(name), longest), max_width=longest)
    table.add_column("Models", overflow="fold", min_width=8)
    for name, shortest in NUMBERS.items():
        table.add_column(name, justify="right", min_width=shortest)
    for server in group.servers:
        table.add_row(*_cells(server))
    yield Padding(table, (0, 0, 0, 2))
    for server in group.servers:
        if server.reason:
            yield Padding(Text(f"Block {server.block} was lost: {server.reason}", style="red"), (0, 0, 0, 2))


def _cells(server: ServerStatus) -> list[Text]:
    joined = server.id is not None
    return [
        Text(server.state, style=STYLES[server.state]),
        Text(server.block),
        Text(server.job),
        Text((server.node or "").partition(".")[0]),
        Text(", ".join(server.models)),
        Text(_number(server.requests) if joined else ""),
        Text(_number(server.rows) if joined else ""),
        Text("" if server.queue_ms is None else f"{server.queue_ms:.1f}"),
        Text("" if server.walltime_left_s is None else _duration(server.walltime_left_s)),
    ]


def _number(value: int) -> str:
    """Return a number in five characters or fewer, where it is below a million of millions."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= 10 * size:
            return f"{value / size:.0f}{unit}" if value >= 100 * size else f"{value / size:.1f}{unit}"
    return str(value)


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), HOUR_S)
    return f"{hours}:{rest // MINUTE_S:02d}:{rest % MINUTE_S:02d}"
