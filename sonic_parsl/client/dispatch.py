"""Sends requests: which one next, to which server, and what to do when it fails.

Everything here runs in the session's event loop, so that nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import grpc.aio

from sonic_parsl.client.balancer import choose
from sonic_parsl.client.job import Job, Request, bug
from sonic_parsl.client.link import Link
from sonic_parsl.client.retry import attempt_timeout, backoff, learn
from sonic_parsl.client.table import ModelKey, nobody_will, states
from sonic_parsl.errors import PoolError, ResponseError, SonicError
from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import LEASE_S, ServerTable
from sonic_parsl.status import ASKED, Fault, translate

MAX_BYTES_IN_FLIGHT = 256 * 2**20
"""Of one process: a node runs as many as it has cores."""

STRANDED_S = 2 * LEASE_S
"""A call whose kind of server is gone waits so long for another of the kind: one lease to notice, one to start."""


@dataclass
class Lane:
    """What waits for one model: requests that failed before, and calls that are not wholly sent."""

    again: list[Request] = field(default_factory=list)
    jobs: deque[Job] = field(default_factory=deque)


class Dispatcher:
    """Sends the requests of all calls of a session with the pool `ref`.

    Parameters
    ----------
    give_up
        Takes calls that no server will answer.
    """

    def __init__(self, ref: PoolRef, give_up: Callable[[Job, PoolError], None]) -> None:
        self._ref = ref
        self._give_up = give_up
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
        self._wakes_at = 0.0

    # What the session tells ------------------------------------------------

    def start(self) -> None:
        """Go on, in the running loop, where :meth:`stop` ended."""
        self._rng.seed()
        self._running = True
        self._woken()

    async def stop(self) -> None:
        """Close all connections; what was in flight waits for the next :meth:`start`."""
        self._running = False
        if self._wake is not None:
            self._wake.cancel()
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
        if problem := self._problem or self._nobody(job):
            self._give_up(job, problem)
            return
        self._jobs.add(job)
        self._lanes.setdefault(job.key, Lane()).jobs.append(job)
        self._wake_at(job.deadline)
        self._pump()

    def discard(self, job: Job) -> None:
        """Drop a call that its reader cancelled."""
        self._retire(job)
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
                self._links[server_id] = Link(entry, self._ref)
        for job in tuple(self._jobs):
            if hopeless := self._nobody(job):
                self._retire(job)
                self._give_up(job, hopeless)
        self._check_stranded()
        self._pump()

    def lose(self, problem: PoolError) -> None:
        """Give up all calls, and those to come, until a table comes again."""
        self._problem = problem
        jobs, self._jobs = self._jobs, set()
        self._lanes.clear()
        for job in jobs:
            self._give_up(job, problem)

    def _nobody(self, job: Job) -> PoolError | None:
        return nobody_will(self._table, self._ref.fallback, job.model.name)

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
        serving = [link for link in self._links.values() if key in link.offers]
        able = self._able(serving, key, now)
        lane.again = [r for r in lane.again if not r.job.done and not self._send_again(r, serving, able, now)]
        passed: list[Job] = []
        room = True
        while lane.jobs and able and room:
            job = lane.jobs[0]
            while job.waiting and able and not job.done and (room := self._has_room(job.waiting[0])):
                if not self._send(job.waiting[0], serving, able, now):
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
        others_exist = any(
            x.server_id not in request.failed_on and request.job.accepts(x.offers[request.job.key]) for x in serving
        )
        avoid = request.failed_on if others_exist else set()
        return self._has_room(request) and self._send(request, serving, able, now, avoid)

    def _send(
        self, request: Request, serving: list[Link], able: list[Link], now: float, avoid: Collection[str] = ()
    ) -> bool:
        """Send to one of the links that are able and offer what the call needs, if there is one."""
        job = request.job

        def fit(links: list[Link]) -> list[Link]:
            return [x for x in links if x.server_id not in avoid and job.accepts(x.offers[job.key])]

        fitting = fit(able)
        late = [x for x in fitting if x.is_spared(job.key, now=now)]
        if late and any(not x.is_spared(job.key, now=now) and x.rests_until(job.key) <= now for x in fit(serving)):
            fitting = [x for x in fitting if x not in late]  # what is left may be busy: better to wait for it
        if not fitting:
            return False
        link = choose(fitting, request.row_count, lambda one: one.s_per_row(job.key, now=now), self._rng)
        job.settle_on(link.offers[job.key], link.server_id)
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
        except ResponseError as error:
            self._answered_wrongly(request, link, error.at(**request.where(link.server_id)), sent)
        except SonicError as error:
            self._end(job, error.at(**request.where(link.server_id)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader must not wait for ever
            self._end(job, bug(error).at(**request.where(link.server_id)))
        else:
            self._answered(request, link, sent)

    def _settle(self, task: asyncio.Task[None], request: Request, link: Link) -> None:
        self._tasks.discard(task)
        if request.task is task:  # else it was recalled and is under way again
            request.task = None  # a task that was cancelled keeps its gRPC call alive, which a fork must not see
            request.job.in_flight.discard(request)
        link.release(request)
        self._bytes_in_flight -= request.nbytes
        self._close_if_idle(link)
        self._pump()

    # What comes of it ----------------------------------------------------------

    def _answered(self, request: Request, link: Link, sent: float) -> None:
        job, now = request.job, time.monotonic()
        latency_s = now - sent
        self._usual_s[job.key] = learn(self._usual_s.get(job.key), latency_s)
        link.answered(request, sent=sent, now=now)
        job.call.ledger.answered(link.server_id, request.row_count, latency_s)
        if job.gather.complete:
            self._jobs.discard(job)
            job.complete()

    def _failed(self, request: Request, link: Link, fault: Fault, sent: float) -> None:
        job, now = request.job, time.monotonic()
        job.last_error = fault.error
        if job.done or request.task is not asyncio.current_task():  # nobody waits, or it was recalled
            return
        if fault.retry == "never" or request.suspected >= ASKED.get(fault.retry, sys.maxsize):
            self._end(job, fault.error)
            return
        request.suspected += fault.retry in ASKED
        late = fault.status == "DEADLINE_EXCEEDED"
        request.timed_out += late
        request.failed_on.add(link.server_id)
        request.not_before = now + backoff(request.attempts - 1, self._rng) if request.attempts > 1 else 0.0
        link.failed(job.key, sent=sent, now=now, late=late, rng=self._rng)
        self._lanes.setdefault(job.key, Lane()).again.append(request)

    def _answered_wrongly(self, request: Request, link: Link, error: SonicError, sent: float) -> None:
        """Put the server aside; ask another one, if there is one."""
        job = request.job
        assert isinstance(error, ResponseError)
        link.put_aside(job.key, now=time.monotonic())
        job.call.ledger.note(f"Server {link.server_id} was put aside: {error.message}")
        tried = {*request.failed_on, link.server_id}
        serving = [x for x in self._links.values() if job.key in x.offers]
        if any(x.server_id not in tried and job.accepts(x.offers[job.key]) for x in serving):
            self._failed(request, link, Fault(error, "elsewhere", "WRONG_ANSWER"), sent)
        elif not job.done:
            self._end(job, error)

    def _check_stranded(self) -> None:
        """Give calls a while whose servers are all gone, where others serve something that does not fit."""
        for job in self._jobs:
            links = [link for link in self._links.values() if job.key in link.offers]
            strange = [link for link in links if not job.accepts(link.offers[job.key])]
            if strange and len(strange) == len(links):
                if job.stranded is None:
                    error = job.mismatch(strange[0].server_id, strange[0].offers[job.key])
                    job.stranded = asyncio.get_running_loop().call_later(STRANDED_S, self._end, job, error)
            elif job.stranded is not None:
                job.stranded.cancel()
                job.stranded = None

    def _may_wait(self, job: Job) -> bool:
        """Return whether a call may outlast its deadline: until there is a server, or the owner gives the pool up."""
        fallback = self._ref.fallback
        return bool(fallback and fallback.patient) and not any(job.key in x.offers for x in self._links.values())

    def _end(self, job: Job, error: SonicError) -> None:
        self._retire(job)
        job.fail(error)

    def _retire(self, job: Job) -> None:
        """Keep nothing of a call that is about to end: there may be no server for long, and many such calls."""
        self._jobs.discard(job)
        lane = self._lanes.get(job.key)
        if lane is not None:
            lane.again = [request for request in lane.again if request.job is not job]
            if job in lane.jobs:
                lane.jobs.remove(job)

    def _recall_all(self, link: Link) -> None:
        """Cancel what is in flight to a server; it goes to the next one at once."""
        for request in tuple(link.in_flight):
            task, request.task = request.task, None
            if task and task.cancel() and not request.job.done:
                self._lanes.setdefault(request.job.key, Lane()).again.append(request)

    # Tasks and timers ----------------------------------------------------------

    def _close_if_idle(self, link: Link) -> None:
        if not link.in_flight and self._links.get(link.server_id) is not link:
            task = asyncio.get_running_loop().create_task(link.close())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _wake_at(self, when: float) -> None:
        """Look again at that time, in seconds of the monotonic clock; one timer serves all calls."""
        if self._wake is not None:
            if self._wakes_at <= when:
                return
            self._wake.cancel()
        self._wakes_at = when
        self._wake = asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), self._woken)

    def _woken(self) -> None:
        self._wake = None
        now = time.monotonic()
        for job in [job for job in self._jobs if job.deadline <= now]:
            if self._may_wait(job):
                job.deadline = now + STRANDED_S
            else:
                self._retire(job)
                job.expire(states(self._table))
        if self._jobs:
            self._wake_at(min(job.deadline for job in self._jobs))
        self._pump()
