"""One server, as this process sees it: its connection, what is in flight to it, how it has behaved."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, replace

from sonic_parsl.client.balancer import Pace
from sonic_parsl.client.job import Request
from sonic_parsl.client.retry import backoff
from sonic_parsl.client.table import ModelKey, Offer, key_of
from sonic_parsl.kserve import KServe
from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import ServerEntry

MAX_REQUESTS_IN_FLIGHT = 16
"""To one server: enough to hide the way there and back; more would only queue there."""

PUT_ASIDE_S = 60.0
"""How long a server that answered wrongly is asked nothing; then one request shows whether that has changed."""

SPARED_S = 60.0
"""How long a server that did not answer in time is asked only what nobody else can answer. Each trial may cost a
time-out, and the registry may well hear of a server that this process does not reach."""


@dataclass(frozen=True)
class Rest:
    """What a server's failures cost it.

    Attributes
    ----------
    failures
        How many there were, one after the other.
    failed_at
        When the last one was; all times are those of the monotonic clock, in s.
    until
        It is asked nothing until then.
    spared_until
        It is asked until then only what no other server can answer.
    """

    failures: int = 0
    failed_at: float = 0.0
    until: float = 0.0
    spared_until: float = 0.0


class Link:
    """The way to one server. Used in the event loop only."""

    def __init__(self, entry: ServerEntry, ref: PoolRef) -> None:
        self.server_id = entry.info.id
        self._ref = ref
        self.update(entry)
        self.rows_in_flight = 0
        self.in_flight: set[Request] = set()
        self._kserve: KServe | None = None
        self._paces: defaultdict[ModelKey, Pace] = defaultdict(Pace)
        self._rests: dict[ModelKey, Rest] = {}

    def update(self, entry: ServerEntry) -> None:
        """Take over what the table says."""
        self._info = entry.info  # a server that starts has no address yet
        models = entry.info.models if entry.state == "ready" else ()
        self.offers: dict[ModelKey, Offer] = {key_of(model): Offer.of(model) for model in models}

    @property
    def kserve(self) -> KServe:
        """The connection, made when first used."""
        if self._kserve is None:
            self._kserve = KServe(self._ref.server(self._info))
        return self._kserve

    def full(self, key: ModelKey) -> bool:
        """Return whether it has enough to do; one request is enough for who failed last time."""
        if len(self.in_flight) >= MAX_REQUESTS_IN_FLIGHT:
            return True
        return key in self._rests and any(request.job.key == key for request in self.in_flight)

    def send(self, request: Request) -> None:
        """Count a request as in flight."""
        self.in_flight.add(request)
        self.rows_in_flight += request.row_count
        request.rows_at_server = self.rows_in_flight

    def release(self, request: Request) -> None:
        """Count it no longer."""
        self.in_flight.discard(request)
        self.rows_in_flight -= request.row_count

    def s_per_row(self, key: ModelKey, *, now: float) -> float | None:
        """Return how many seconds a row of a model takes it; None where that is not known."""
        return self._paces[key].s_per_row(now, idle=not self.in_flight)

    def rests_until(self, key: ModelKey) -> float:
        """Return until when it should be spared requests for a model."""
        return self._rests[key].until if key in self._rests else 0.0

    def is_spared(self, key: ModelKey, *, now: float) -> bool:
        """Return whether others should be asked, as long as there are others."""
        return key in self._rests and self._rests[key].spared_until > now

    def answered(self, request: Request, *, sent: float, now: float) -> None:
        """Note how fast it is; and that it works, unless it has failed since: one that ends answers what it has begun."""
        key = request.job.key
        self._paces[key].learn(now - sent, request.rows_at_server, now=now)
        if key in self._rests and sent >= self._rests[key].failed_at:
            del self._rests[key]

    def failed(self, key: ModelKey, *, sent: float, now: float, late: bool, rng: random.Random) -> None:
        """Let it rest: who refuses at once is always the least busy and would be asked for ever."""
        rest = self._rests.get(key, Rest())
        if sent >= rest.failed_at:  # what was in flight together fails together and counts once
            failures = rest.failures + 1
            rest = replace(rest, failures=failures, failed_at=now, until=now + backoff(failures, rng))
        self._rests[key] = replace(rest, spared_until=now + SPARED_S) if late else rest

    def put_aside(self, key: ModelKey, *, now: float) -> None:
        """Let it rest for long: who answers wrongly once will do so again."""
        rest = self._rests.get(key, Rest())
        self._rests[key] = replace(rest, failures=rest.failures + 1, failed_at=now, until=now + PUT_ASIDE_S)

    async def close(self) -> None:
        """Close the connection."""
        kserve, self._kserve = self._kserve, None
        if kserve is not None:
            await kserve.close()
