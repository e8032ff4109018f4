"""One server, as this process sees it: its connection, what is in flight to it, how it has behaved."""

from __future__ import annotations

import random
from collections import defaultdict

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
        self._rests: dict[ModelKey, tuple[int, float, float]] = {}

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
        return self._rests[key][2] if key in self._rests else 0.0

    def answered(self, request: Request, *, sent: float, now: float) -> None:
        """Note how fast it is; and that it works, unless it has failed since: one that ends answers what it has begun."""
        key = request.job.key
        self._paces[key].learn(now - sent, request.rows_at_server, now=now)
        if key in self._rests and sent >= self._rests[key][1]:
            del self._rests[key]

    def failed(self, key: ModelKey, *, sent: float, now: float, rng: random.Random) -> None:
        """Let it rest: who refuses at once is always the least busy and would be asked for ever."""
        failures, failed_at, until = self._rests.get(key, (0, 0.0, 0.0))
        if sent >= failed_at:  # what was in flight together fails together and counts once
            failures, failed_at, until = failures + 1, now, now + backoff(failures + 1, rng)
        self._rests[key] = (failures, failed_at, until)

    def put_aside(self, key: ModelKey, *, now: float) -> None:
        """Let it rest for long: who answers wrongly once will do so again."""
        failures, _, _ = self._rests.get(key, (0, 0.0, 0.0))
        self._rests[key] = (failures + 1, now, now + PUT_ASIDE_S)

    async def close(self) -> None:
        """Close the connection."""
        kserve, self._kserve = self._kserve, None
        if kserve is not None:
            await kserve.close()
