"""A call seen from the event loop: its requests, what is left of them, when its time is over."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from sonic_parsl.client.call import Call
from sonic_parsl.client.requests import Gather, split
from sonic_parsl.client.table import ModelKey, key_of
from sonic_parsl.errors import DeadlineError, InferenceError, SonicError
from sonic_parsl.kserve import DTYPES, Array, pack, unpack
from sonic_parsl.protocol import ServedModel


@dataclass(eq=False)
class Request:
    """Rows of a call that go to a server together, as often as it takes."""

    job: Job
    number: int
    rows: slice
    nbytes: int
    attempts: int = 0
    timed_out: int = 0
    asked_once_more: bool = False
    not_before: float = 0.0
    last_server: str | None = None
    failed_on: set[str] = field(default_factory=set)
    task: asyncio.Task[None] | None = None

    @property
    def row_count(self) -> int:
        """Its rows."""
        return int(self.rows.stop - self.rows.start)

    @property
    def label(self) -> str:
        """Number and count, as errors and the server's log tell it."""
        return f"{self.number}/{self.job.count}"

    def pack(self) -> bytes:
        """Return it as bytes."""
        job = self.job
        tensors = {name: array[self.rows] for name, array in job.tensors.items()} if job.split else job.tensors
        return pack(job.model.name, job.model.version, tensors, job.outputs, request_id=self.label)

    def take(self, answer: bytes) -> None:
        """Put the answer in its place."""
        job = self.job
        outputs = unpack(answer, job.outputs, rows=self.row_count if job.model.max_batch_size else None)
        job.gather.place(self.rows, outputs, numeric_kind=job.numeric_kind or "")

    def where(self, server_id: str) -> dict[str, object]:
        """Return what an error says of it."""
        return {**self.job.call.context, "server": server_id, "request": self.label}


class Job:
    """A call's work. Used in the event loop only, but for its making.

    Attributes
    ----------
    done
        True when the reader has its outcome, or wants none.
    """

    def __init__(self, call: Call, tensors: Mapping[str, Array], parts: list[slice], *, deadline: float) -> None:
        self.call = call
        self.model = call.ledger.model
        self.key: ModelKey = key_of(self.model)
        self.outputs = tuple(spec.name for spec in self.model.outputs)
        self.tensors = tensors
        self.gather = Gather(self.model.outputs, parts)
        self.deadline = deadline
        self.count = len(parts)
        self.split = len(parts) > 1
        self.attempts = 0
        self.done = False
        self.numeric_kind: str | None = None
        self.last_error: SonicError | None = None
        self.timer: asyncio.TimerHandle | None = None
        size = row_bytes(self.model, tensors, call.ledger.rows)
        self.waiting = deque(Request(self, i, part, size * (part.stop - part.start)) for i, part in enumerate(parts, 1))
        self.in_flight: set[Request] = set()

    def sending(self, request: Request, server_id: str) -> None:
        """Count an attempt at a request."""
        if request.attempts:
            elsewhere = server_id != request.last_server
            self.call.ledger.tried_again(request.row_count, elsewhere=elsewhere)
        request.attempts += 1
        request.last_server = server_id
        self.attempts += 1
        self.in_flight.add(request)

    def complete(self) -> None:
        """Give the reader the result."""
        self._end(self.gather.result())

    def fail(self, error: SonicError) -> None:
        """Give the reader an error, and let go what is in flight."""
        self._end(error.at(**self.call.context))

    def discard(self) -> None:
        """Let go what is in flight; the reader wants it no more."""
        self._release()

    def expire(self, servers: str) -> None:
        """Fail because the time is over."""
        why = f"last error: {self.last_error}" if self.last_error else f"servers: {servers}"
        self.fail(
            DeadlineError(
                f"The call's time is over after {self.attempts} attempts at {self.count} requests; {why}",
                hint="Give it a longer deadline, or the pool more servers.",
            )
        )

    def _end(self, outcome: dict[str, Array] | SonicError) -> None:
        if not self.done:
            self.call.finish(outcome)
        self._release()

    def _release(self) -> None:
        self.done = True
        if self.timer:
            self.timer.cancel()
        for request in tuple(self.in_flight):
            if request.task and request.task is not asyncio.current_task():
                request.task.cancel()
        self.tensors = {}


def parts_of(model: ServedModel, tensors: Mapping[str, Array], rows: int) -> list[slice]:
    """Return the rows of each request of a call."""
    inputs = sum(array.nbytes for array in tensors.values())
    return split(rows, -(-inputs // max(rows, 1)), model.max_batch_size)


def row_bytes(model: ServedModel, tensors: Mapping[str, Array], rows: int) -> int:
    """Return what a row takes in memory while it is in flight, in bytes: inputs, and outputs as far as known."""
    outputs = sum(prod(map(abs, spec.shape)) * DTYPES[spec.datatype].itemsize for spec in model.outputs)
    return sum(array.nbytes for array in tensors.values()) // max(rows, 1) + outputs


def bug(error: Exception) -> InferenceError:
    """Return an error that the client did not foresee as one that readers can handle."""
    return InferenceError(
        f"The client failed: {type(error).__name__}: {error}.",
        hint="This is an error in sonic-parsl; please report it.",
    )
