"""What a call did and what it cost: the numbers a report is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sonic_parsl.client.latency import merge


@dataclass(frozen=True, slots=True)
class ServerShare:
    """What one server did for a call.

    Attributes
    ----------
    rows, requests
        What it answered.
    latencies
        Histogram of the answered requests' time, from sending to reading; see :mod:`.latency`.
    """

    rows: int = 0
    requests: int = 0
    latencies: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call, or several of one model merged.

    Attributes
    ----------
    model, version, numeric_kind
        What was asked; the kind is empty until a server answered.
    rows, requests
        What the call was and how it was split.
    retries, rows_retried, failovers
        Attempts after the first, their rows, and how many of them went to another server.
    rows_padded
        Always 0: nothing is padded.
    nans
        How many numbers of its outputs are no numbers (NaN).
    waiting_s
        How long readers were blocked.
    servers
        What each server did, by its id.
    source_digest
        What the model was made from; empty where nobody said.
    fallback
        True where the asking process computed it, and no server.
    notes
        What went wrong without making it fail.
    error
        Why it failed; None where it did not.
    read
        True if someone asked for the result.
    calls
        How many calls this stands for.
    """

    model: str
    version: str
    rows: int = 0
    requests: int = 0
    retries: int = 0
    rows_retried: int = 0
    failovers: int = 0
    rows_padded: int = 0
    nans: int = 0
    waiting_s: float = 0.0
    servers: dict[str, ServerShare] = field(default_factory=dict)
    numeric_kind: str = ""
    source_digest: str = ""
    fallback: bool = False
    notes: tuple[str, ...] = ()
    error: str | None = None
    read: bool = False
    calls: int = 1


_COUNTS = ("rows", "requests", "retries", "rows_retried", "failovers", "rows_padded", "nans", "waiting_s", "calls")


def merged(records: Iterable[CallRecord]) -> tuple[CallRecord, ...]:
    """Return one record for each model, version, kind, way, error and whether it was read."""
    groups: dict[tuple[object, ...], list[CallRecord]] = {}
    for record in records:
        key = (record.model, record.version, record.numeric_kind, record.fallback, record.error, record.read)
        groups.setdefault(key, []).append(record)
    return tuple(_sum(group) for group in groups.values())


def _sum(group: list[CallRecord]) -> CallRecord:
    first = group[0]
    counts = {name: sum(getattr(record, name) for record in group) for name in _COUNTS}
    ids = sorted({server for record in group for server in record.servers})
    servers = {i: _share([record.servers[i] for record in group if i in record.servers]) for i in ids}
    return CallRecord(
        first.model,
        first.version,
        **counts,
        servers=servers,
        numeric_kind=first.numeric_kind,
        source_digest=first.source_digest,
        fallback=first.fallback,
        notes=tuple(dict.fromkeys(note for record in group for note in record.notes)),
        error=first.error,
        read=first.read,
    )


def _share(shares: list[ServerShare]) -> ServerShare:
    return ServerShare(
        rows=sum(share.rows for share in shares),
        requests=sum(share.requests for share in shares),
        latencies=merge(share.latencies for share in shares),
    )
