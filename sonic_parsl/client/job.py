"""A call seen from the event loop: its requests, what is left of them, when its time is over."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from sonic_parsl.client.call import Call
from sonic_parsl.client.requests import Gather, count_nans, split
from sonic_parsl.client.table import ModelKey, Offer, key_of
from sonic_parsl.errors import DeadlineError, InferenceError, ModelMismatchError, SonicError
from sonic_parsl.kserve import DTYPES, Array, pack, unpack
from sonic_parsl.protocol import ServedModel

_serials = itertools.count(1)


@dataclass(eq=False)
class Request:
    """Rows of a call that go to a server together, as often as it takes.

    Attributes
    ----------
    rows_at_server
        This process's rows in flight to its server when it was sent last, its own among them.
    """

    job: Job
    number: int
    rows: slice
    nbytes: int
    attempts: int = 0
    timed_out: int = 0
    suspected: int = 0
    not_before: float = 0.0
    rows_at_server: int = 0
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

    @property
    def id(self) -> str:
        """Its name among all requests of this process, which the answer has to bear."""
        return f"{self.job.serial}:{self.label}"

    def pack(self) -> bytes:
        """Return it as bytes."""
        job = self.job
        tensors = {name: array[self.rows] for name, array in job.tensors.items()} if job.split else job.tensors
        return pack(job.model.name, job.model.version, tensors, job.outputs, request_id=self.id)

    def take(self, answer: bytes) -> None:
        """Put the answer in its place."""
        job = self.job
        rows = self.row_count if job.model.max_batch_size else None
        outputs = unpack(answer, job.outputs, rows=rows, model=job.model.name, request_id=self.id)
        job.gather.place(self.rows, outputs, numeric_kind=job.offer.numeric_kind if job.offer else "")

    def where(self, server_id: str) -> dict[str, object]:
        """Return what an error says of it."""
        return {**self.job.call.context, "server": server_id, "request": self.label}


class Job:
    """A call's work. Used in the event loop only, but for its making.

    Attributes
    ----------
    offer, first_server
        What the server of its first request offered, and which it was: the others' must be alike.
    done
        True when the reader has its outcome, or wants none.
    """

    def __init__(self, call: Call, tensors: Mapping[str, Array], parts: list[slice], *, deadline: float) -> None:
        self.call = call
        self.model = call.ledger.model
        self.key: ModelKey = key_of(self.model)
        self.outputs = tuple(spec.name for spec in self.model.outputs)
        self.tensors = tensors
        self.gather = Gather(self.model.outputs, parts, batched=self.model.max_batch_size > 0)
        self.serial = next(_serials)
        self.deadline = deadline
        self.count = len(parts)
        self.split = len(parts) > 1
        self.attempts = 0
        self.done = False
        self.offer: Offer | None = None
        self.first_server = ""
        self.last_error: SonicError | None = None
        self.stranded: asyncio.TimerHandle | None = None
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

    def accepts(self, offer: Offer) -> bool:
        """Return whether a server that offers this may answer some of its requests."""
        return self.offer is None or self.offer == offer

    def settle_on(self, offer: Offer, server_id: str) -> None:
        """Note which server got its first request."""
        if self.offer is None:
            self.offer, self.first_server = offer, server_id
            self.call.ledger.numeric_kind = offer.numeric_kind

    def complete(self) -> None:
        """Give the reader the result."""
        outputs = self.gather.result()
        self.call.ledger.nans = count_nans(outputs)
        self._end(outputs)

    def fail(self, error: SonicError) -> None:
        """Give the reader an error, and let go what is in flight."""
        self._end(error.at(**self.call.context))

    def mismatch(self, server_id: str, offer: Offer) -> ModelMismatchError:
        """Return the error where only a server is left whose answers would not mix with those that are there."""
        return ModelMismatchError(
            f"The call began on server {self.first_server} ({self.offer}), which is gone; server {server_id} has "
            f"{offer}, and what they answer does not mix.",
            hint="Ask again: a new call may use the other one. A second server of each group avoids this.",
        )

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
        if self.stranded:
            self.stranded.cancel()
        for request in tuple(self.in_flight):
            if request.task and request.task is not asyncio.current_task():
                request.task.cancel()
        # Requests hold their job: with them it, and the outputs that came, would stay until a collection.
        self.waiting.clear()
        self.in_flight.clear()
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
