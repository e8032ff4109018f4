"""Sends requests: which one next, to which server, and what to do when it fails.

Everything here runs in the session's event loop, so that nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

import grpc.aio

from sonic_parsl.client.balancer import choose
from sonic_parsl.client.job import Job, Request, bug
from sonic_parsl.client.link import Link
from sonic_parsl.client.retry import attempt_timeout, backoff, learn
from sonic_parsl.client.table import ModelKey, states
from sonic_parsl.errors import PoolError, SonicError
from sonic_parsl.kserve import Fault, translate
from sonic_parsl.protocol import ServerTable

MAX_BYTES_IN_FLIGHT = 256 * 2**20
"""Of one process: a node runs as many as it has cores."""


@dataclass
class Lane:
    """What waits for one model: requests that failed before, and calls that are not wholly sent."""

    again: list[Request] = field(default_factory=list)
    jobs: deque[Job] = field(default_factory=deque)


class Dispatcher:
    """Sends the requests of all calls of a session."""

    def __init__(self) -> None:
        self._rng = random.Random()
        self._jobs: set[Job] = set()
        self._lanes: dict[ModelKey, Lane] = {}
        self._links: dict[str, Link] = {}
        self._usual_s: dict[ModelKey, float] = {}
        self._bytes_in_flight = 0
        self._table: ServerTable | None = None
        self._problem: PoolError | None = None
        self._running = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake: asyncio.TimerHandle | None = None

    # What the session tells ------------------------------------------------

    def start(self) -> None:
        """Go on, in the running loop, where :meth:`stop` ended."""
        self._rng.seed()
        self._running = True
        for job in self._jobs:
            self._arm(job)
        self._pump()

    async def stop(self) -> None:
        """Close all connections; what was in flight waits for the next :meth:`start`."""
        self._running = False
        for timer in (self._wake, *(job.timer for job in self._jobs)):
            if timer:
                timer.cancel()
        self._wake = None
        for link in self._links.values():
            self._recall_all(link)
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links.values():
            await link.close()

    def forget(self) -> None:
        """Drop all calls: they are another process's."""
        self._jobs.clear()
        self._lanes.clear()

    def add(self, job: Job) -> None:
        """Take a call."""
        if job.done:
            return
        if self._problem:
            job.fail(self._problem)
            return
        self._jobs.add(job)
        self._lanes.setdefault(job.key, Lane()).jobs.append(job)
        self._arm(job)
        self._pump()

    def discard(self, job: Job) -> None:
        """Drop a call that its reader cancelled."""
        self._jobs.discard(job)
        job.discard()

    def update(self, table: ServerTable) -> None:
        """Take over a new table."""
        self._table, self._problem = table, None
        entries = {entry.info.id: entry for entry in table.servers}
        for server_id in self._links.keys() - entries.keys():
            link = self._links.pop(server_id)
            self._recall_all(link)
            self._close_if_idle(link)
        for server_id, entry in entries.items():
            if server_id in self._links:
                self._links[server_id].update(entry)
            else:
                self._links[server_id] = Link(entry)
        self._pump()

    def lose(self, problem: PoolError) -> None:
        """Fail all calls, and those to come, until a table comes again."""
        self._problem = problem
        for job in tuple(self._jobs):
            self._end(job, problem)
        self._lanes.clear()

    # Sending -----------------------------------------------------------------

    def _pump(self) -> None:
        if not self._running:
            return
        now = time.monotonic()
        for key, lane in tuple(self._lanes.items()):
            room = self._drain(lane, key, now)
            if not (lane.again or lane.jobs):
                del self._lanes[key]
            elif room:
                self._lanes[key] = self._lanes.pop(key)  # to the end: models take turns
            else:
                return

    def _drain(self, lane: Lane, key: ModelKey, now: float) -> bool:
        """Send what can be sent; return False when the bound on bytes stops it."""
        serving = [link for link in self._links.values() if key in link.kinds]
        able = self._able(serving, key, now)
        lane.again = [r for r in lane.again if not r.job.done and not self._send_again(r, serving, able, now)]
        passed: list[Job] = []
        room = True
        while lane.jobs and able and room:
            job = lane.jobs[0]
            while job.waiting and able and not job.done and (room := self._has_room(job.waiting[0])):
                if not self._send(job.waiting[0], able, now):
                    passed.append(job)  # its kind of server is busy; another call may go on
                    break
                job.waiting.popleft()
            if job.done or not job.waiting or job in passed:
                lane.jobs.popleft()
        lane.jobs.extendleft(reversed(passed))
        return room

    def _able(self, serving: list[Link], key: ModelKey, now: float) -> list[Link]:
        for link in serving:
            if link.rests_until(key) > now:
                self._wake_at(link.rests_until(key))
        return [link for link in serving if link.rests_until(key) <= now and not link.full(key)]

    def _has_room(self, request: Request) -> bool:
        return not self._bytes_in_flight or self._bytes_in_flight + request.nbytes <= MAX_BYTES_IN_FLIGHT

    def _send_again(self, request: Request, serving: list[Link], able: list[Link], now: float) -> bool:
        if request.not_before > now:
            self._wake_at(request.not_before)
            return False
        others_exist = any(link.server_id not in request.failed_on for link in serving)
        avoid = request.failed_on if others_exist else set()
        return self._has_room(request) and self._send(request, able, now, avoid)

    def _send(self, request: Request, able: list[Link], now: float, avoid: Collection[str] = ()) -> bool:
        """Send to one of the links that are able and of the call's numeric kind, if there is one."""
        job = request.job
        kind = job.numeric_kind
        fit = [x for x in able if x.server_id not in avoid and kind in {None, x.kinds[job.key]}]
        if not fit:
            return False
        link = choose(fit, self._rng)
        job.numeric_kind = job.call.ledger.numeric_kind = link.kinds[job.key]
        job.sending(request, link.server_id)
        link.send(request)
        if link.full(job.key):
            able.remove(link)
        self._bytes_in_flight += request.nbytes
        # A task that is cancelled before its first step runs none of its code: _settle is its callback.
        request.task = asyncio.get_running_loop().create_task(self._attempt(request, link, now))
        self._tasks.add(request.task)
        request.task.add_done_callback(lambda task: self._settle(task, request, link))
        return True

    async def _attempt(self, request: Request, link: Link, sent: float) -> None:
        job = request.job
        try:
            allowed = attempt_timeout(self._usual_s.get(job.key), timed_out=request.timed_out)
            answer = await link.kserve.attempt(request.pack(), timeout_s=min(allowed, job.deadline - sent))
            request.take(answer)
        except grpc.aio.AioRpcError as error:
            self._failed(request, link, translate(error, **request.where(link.server_id)), sent)
        except SonicError as error:
            self._end(job, error.at(**request.where(link.server_id)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader must not wait for ever
            self._end(job, bug(error).at(**request.where(link.server_id)))
        else:
            self._answered(request, link, sent)

    def _settle(self, task: asyncio.Task[None], request: Request, link: Link) -> None:
        self._tasks.discard(task)
        request.task = None  # a task that was cancelled keeps its gRPC call alive, which a fork must not see
        request.job.in_flight.discard(request)
        link.release(request)
        self._bytes_in_flight -= request.nbytes
        self._close_if_idle(link)
        self._pump()

    # What comes of it ----------------------------------------------------------

    def _answered(self, request: Request, link: Link, sent: float) -> None:
        job, latency_s = request.job, time.monotonic() - sent
        self._usual_s[job.key] = learn(self._usual_s.get(job.key), latency_s)
        link.answered(job.key, sent=sent)
        job.call.ledger.answered(link.server_id, request.row_count, latency_s)
        if job.gather.complete:
            self._jobs.discard(job)
            job.complete()

    def _failed(self, request: Request, link: Link, fault: Fault, sent: float) -> None:
        job, now = request.job, time.monotonic()
        job.last_error = fault.error
        if job.done:
            return
        if fault.retry == "never" or (fault.retry == "once" and request.asked_once_more):
            self._end(job, fault.error)
            return
        request.asked_once_more |= fault.retry == "once"
        request.timed_out += fault.status == "DEADLINE_EXCEEDED"
        request.failed_on.add(link.server_id)
        request.not_before = now + backoff(request.attempts - 1, self._rng) if request.attempts > 1 else 0.0
        link.failed(job.key, sent=sent, now=now, rng=self._rng)
        self._lanes.setdefault(job.key, Lane()).again.append(request)

    def _end(self, job: Job, error: SonicError) -> None:
        self._jobs.discard(job)
        job.fail(error)

    def _recall_all(self, link: Link) -> None:
        """Cancel what is in flight to a server; it goes to the next one at once."""
        for request in tuple(link.in_flight):
            if request.task and request.task.cancel() and not request.job.done:
                self._lanes.setdefault(request.job.key, Lane()).again.append(request)

    # Tasks and timers ----------------------------------------------------------

    def _close_if_idle(self, link: Link) -> None:
        if not link.in_flight and self._links.get(link.server_id) is not link:
            task = asyncio.get_running_loop().create_task(link.close())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _arm(self, job: Job) -> None:
        delay = max(0.0, job.deadline - time.monotonic())
        job.timer = asyncio.get_running_loop().call_later(delay, self._expire, job)

    def _expire(self, job: Job) -> None:
        self._jobs.discard(job)
        job.expire(states(self._table))

    def _wake_at(self, when: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + max(0.0, when - time.monotonic())
        if self._wake is None or at < self._wake.when():
            if self._wake is not None:
                self._wake.cancel()
            self._wake = loop.call_at(at, self._woken)

    def _woken(self) -> None:
        self._wake = None
        self._pump()
