"""What a run tells afterwards: how many events and rows, which servers, how long."""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from sonic_parsl.client.latency import merge, quantile
from sonic_parsl.client.records import CallRecord
from sonic_parsl.client.records import merged as merged_calls
from sonic_parsl.client.scope import Chunk
from sonic_parsl.protocol import ServerEntry

UNVERIFIED = "unverified"
"""Word in the tables for models of which nobody says what they were made from."""


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """The calls to one model within one chunk."""

    chunk: Chunk
    call: CallRecord

    @classmethod
    def of(cls, chunk: Chunk, call: CallRecord) -> ChunkRecord:
        """Return the record of `call` in `chunk`."""
        return cls(chunk=chunk, call=call)


@dataclass(frozen=True)
class ServerLine:
    """A server in the report.

    Attributes
    ----------
    devices
        Numbers of the node's devices that the batch system gave it; empty where it does not say.
    rows
        Rows it answered for this run.
    verified
        Whether it says what its models were made from; who runs it for others may not.
    p50_ms, p99_ms
        Median and 99th percentile of the time from sending a request to reading its answer, in ms.
    queue_ms, compute_ms
        Mean time a request waited and was computed in the server, in ms, as Triton counts.
    """

    id: str
    group: str
    kind: str
    fidelity: str
    node: str
    job_id: str
    devices: str
    rows: int
    verified: bool
    p50_ms: float | None
    p99_ms: float | None
    queue_ms: float | None
    compute_ms: float | None


@dataclass(frozen=True)
class ModelLine:
    """A model in the report.

    Attributes
    ----------
    source_digest
        What it was made from; empty where nobody said.
    verified
        Whether every server that answered said so.
    """

    name: str
    version: str
    numeric_kind: str
    rows: int
    requests: int
    source_digest: str
    verified: bool


@dataclass(frozen=True, slots=True)
class ChunkLine:
    """A chunk and a model in the report; a chunk that was processed again is the same line.

    Attributes
    ----------
    fallback
        Whether the worker computed the model itself, since the pool had no server.
    waiting_s
        How long readers were blocked, in seconds, summed over the calls.
    """

    fileuuid: str
    entrystart: int
    entrystop: int
    model: str
    servers: tuple[str, ...]
    numeric_kind: str
    fallback: bool
    waiting_s: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What happened in a run; ``report.json`` holds the same.

    Attributes
    ----------
    events_in, events_out
        Events of the chunks given out, and of those that came back.
    rows, rows_cached, rows_sent, rows_retried, rows_padded
        Rows asked for; of these answered from a cache; sent for the first time; sent again; sent in vain.
    nans
        Numbers in the models' outputs that are no numbers (NaN): they are passed on as they come.
    requests, retries, failovers
        Requests; attempts after the first; those of them that went to another server.
    wall_s, waiting_s
        Time of the run, and time that chunks were blocked on inference, summed over chunks, in seconds.
    warnings
        What went wrong without stopping the run.
    """

    schema: Literal[1] = 1
    events_in: int
    events_out: int
    chunks: int
    rows: int
    rows_cached: int
    rows_sent: int
    rows_retried: int
    rows_padded: int
    nans: int
    requests: int
    retries: int
    failovers: int
    wall_s: float
    waiting_s: float
    servers: tuple[ServerLine, ...]
    models: tuple[ModelLine, ...]
    chunk_records: tuple[ChunkLine, ...]
    warnings: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Write to `path` as JSON."""
        path.write_bytes(TypeAdapter(Report).dump_json(self, indent=2))

    def __rich__(self) -> RenderableType:
        told = (f"[yellow]Warning:[/] {escape(text)}" for text in self.warnings)
        return Group(_summary(self), _servers(self), *told)


_Key = tuple[str, int, int, str, str, bool]
"""A chunk, a model, its numeric kind, and whether the worker computed it."""


@dataclass
class RunLog:
    """Collects what chunks report while a site is up.

    A chunk keeps its line of the report, and its calls are added to those of all chunks: a run may have
    a hundred thousand, and a notebook runs them again and again.
    """

    events_in: int = 0
    events_out: int = 0
    chunks: int = 0
    wall_s: float = 0.0
    _lines: dict[_Key, ChunkLine] = field(default_factory=dict, repr=False)
    _calls: tuple[CallRecord, ...] = field(default=(), repr=False)
    _failures: dict[str, None] = field(default_factory=dict, repr=False)
    _told: set[str] = field(default_factory=set, repr=False)

    @contextmanager
    def running(self, items: Sequence[Any]) -> Iterator[None]:
        """Count coffea's work items in, and the time until they are done."""
        self.events_in += sum(len(item) for item in items)
        start = time.monotonic()
        try:
            yield
        finally:
            self.wall_s += time.monotonic() - start

    def take(self, records: Iterable[ChunkRecord], merged: Any) -> None:
        """Take what came home: the chunks' records, and coffea's set of what was processed."""
        records = list(records)
        for record in records:
            key = _key(record)
            self._lines[key] = _chunk_line(key, record.call, self._lines.get(key))
        self._calls = merged_calls((*self._calls, *(record.call for record in records)))
        failures = list(_warnings(records))
        self._failures.update(dict.fromkeys(failures))
        processed = merged.get("processed", ()) if isinstance(merged, dict) else ()
        self.events_out += sum(len(item) for item in processed)
        self.chunks += len(processed)
        fallen = dict.fromkeys(note for record in records if record.call.fallback for note in record.call.notes)
        new = [text for text in fallen if text not in self._told]
        self._told.update(new)
        for text in (*failures, *new):
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def report(
        self, servers: Sequence[ServerEntry], extra: Sequence[CallRecord] = (), notes: Sequence[str] = ()
    ) -> Report:
        """Return the report.

        Parameters
        ----------
        servers
            Every server there was, as last seen.
        extra
            Calls made outside of chunks.
        notes
            What else the report should warn of.
        """
        calls = [*self._calls, *extra]
        rows = sum(call.rows for call in calls)
        return Report(
            events_in=self.events_in,
            events_out=self.events_out,
            chunks=self.chunks,
            rows=rows,
            rows_cached=0,
            rows_sent=rows,
            rows_retried=sum(call.rows_retried for call in calls),
            rows_padded=sum(call.rows_padded for call in calls),
            nans=sum(call.nans for call in calls),
            requests=sum(call.requests for call in calls),
            retries=sum(call.retries for call in calls),
            failovers=sum(call.failovers for call in calls),
            wall_s=self.wall_s,
            waiting_s=sum(call.waiting_s for call in calls),
            servers=tuple(_server_line(entry, calls) for entry in servers if entry.info.models),
            models=_model_lines(calls, servers),
            chunk_records=tuple(self._lines.values()),
            warnings=tuple(dict.fromkeys((*notes, *self._failures, *_notes(calls)))),
        )


def _warnings(records: Iterable[ChunkRecord]) -> Iterator[str]:
    for record in records:
        if record.call.error is not None and not record.call.read:
            yield f"Chunk {record.chunk}: a column of model {record.call.model} failed, and was never read: {record.call.error}"


def _notes(calls: Iterable[CallRecord]) -> Iterator[str]:
    for call in calls:
        yield from call.notes


def _key(record: ChunkRecord) -> _Key:
    """Return what makes a line; words that come in every line are kept once."""
    chunk, call = record.chunk, record.call
    uuid, model, kind = map(sys.intern, (chunk.fileuuid, call.model, call.numeric_kind))
    return uuid, chunk.entrystart, chunk.entrystop, model, kind, call.fallback


def _chunk_line(key: _Key, call: CallRecord, before: ChunkLine | None) -> ChunkLine:
    """Return a chunk's line: what it was before, and this call."""
    fileuuid, entrystart, entrystop, model, numeric_kind, fallback = key
    servers = {*call.servers, *(before.servers if before else ())}
    return ChunkLine(
        fileuuid=fileuuid,
        entrystart=entrystart,
        entrystop=entrystop,
        model=model,
        servers=tuple(sys.intern(server) for server in sorted(servers)),
        numeric_kind=numeric_kind,
        fallback=fallback,
        waiting_s=call.waiting_s + (before.waiting_s if before else 0.0),
    )


def _server_line(entry: ServerEntry, calls: Sequence[CallRecord]) -> ServerLine:
    info, load = entry.info, entry.load
    shares = [call.servers[info.id] for call in calls if info.id in call.servers]
    latencies = merge(share.latencies for share in shares)
    return ServerLine(
        id=info.id,
        group=info.group,
        kind=info.kind,
        fidelity=info.fidelity,
        node=info.node,
        job_id=info.job_id,
        devices=info.devices,
        rows=sum(share.rows for share in shares),
        verified=all(model.source_digest for model in info.models),
        p50_ms=_ms(quantile(latencies, 0.5)),
        p99_ms=_ms(quantile(latencies, 0.99)),
        queue_ms=load.queue_ms / load.requests if load.requests else None,
        compute_ms=load.compute_ms / load.requests if load.requests else None,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _model_lines(calls: Sequence[CallRecord], servers: Sequence[ServerEntry]) -> tuple[ModelLine, ...]:
    digests = {(entry.info.id, m.name, m.version): m.source_digest for entry in servers for m in entry.info.models}
    rows: Counter[tuple[str, str, str]] = Counter()
    requests: Counter[tuple[str, str, str]] = Counter()
    said: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    for call in calls:
        if call.numeric_kind:
            key = (call.model, call.version, call.numeric_kind)
            rows[key] += call.rows
            requests[key] += call.requests
            if call.fallback:
                said[key].add(call.source_digest)
            said[key].update(digests.get((server, call.model, call.version), "") for server in call.servers)
    return tuple(
        ModelLine(
            *key,
            rows=rows[key],
            requests=requests[key],
            source_digest=max(said[key], default=""),
            verified=all(said[key]),
        )
        for key in sorted(rows)
    )


# Tables ---------------------------------------------------------------------


def _table(title: str, *, show_header: bool = True) -> Table:
    """Return a table without lines between columns, so that eight of them fit into 80 characters."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_header=show_header)


def _summary(report: Report) -> Table:
    table = _table("What happened", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("events in / out", f"{report.events_in} / {report.events_out}")
    table.add_row("chunks", str(report.chunks))
    if alone := {(line.fileuuid, line.entrystart) for line in report.chunk_records if line.fallback}:
        table.add_row("chunks inferred without servers", f"[yellow]{len(alone)}[/]")
    table.add_row("rows inferred", str(report.rows))
    for model in report.models:
        traits = model.numeric_kind if model.verified else f"{model.numeric_kind}, {UNVERIFIED}"
        table.add_row(escape(f"  {model.name} v{model.version} ({traits})"), str(model.rows))
    table.add_row("requests", str(report.requests))
    table.add_row("retries / failovers", f"{report.retries} / {report.failovers}")
    if report.nans:
        table.add_row("NaN in the outputs", f"[yellow]{report.nans}[/]")
    table.add_row("wall time", f"{report.wall_s:.1f} s")
    table.add_row("chunks waited for inference", f"{report.waiting_s:.2f} s")
    return table


def _servers(report: Report) -> Table:
    table = _table("Servers, times in ms")
    table.add_column("server", no_wrap=True)
    for name in ("device", "node"):
        table.add_column(name, overflow="fold", min_width=len(name))
    for name in ("rows", "p50", "p99", "queue", "compute"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in report.servers:
        traits = [line.fidelity] * (line.fidelity != "hardware") + [UNVERIFIED] * (not line.verified)
        name = f"{line.kind}:{line.devices}" if line.devices else line.kind
        device = f"{name} ({', '.join(traits)})" if traits else name
        numbers = (line.p50_ms, line.p99_ms, line.queue_ms, line.compute_ms)
        names = (escape(text) for text in (line.id, device, line.node.partition(".")[0]))
        table.add_row(*names, str(line.rows), *(_number(number) for number in numbers))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
