"""The reader's end of a call: a future that says what its reading cost."""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import CancelledError, Future, TimeoutError  # noqa: A004 - another one before Python 3.11

from typing_extensions import override

from sonic_parsl.client.latency import bucket
from sonic_parsl.client.records import CallRecord, ServerShare
from sonic_parsl.errors import DeadlineError, InferenceError, SonicError
from sonic_parsl.kserve import Array
from sonic_parsl.protocol import ServedModel


class Ledger:
    """Counts what a call does; :meth:`record` tells it at any time."""

    def __init__(self, model: ServedModel, rows: int, requests: int) -> None:
        self.model = model
        self.rows = rows
        self.requests = requests
        self.retries = self.rows_retried = self.failovers = 0
        self.waiting_s = 0.0
        self.nans = 0
        self._notes: dict[str, None] = {}
        self.numeric_kind = ""
        self.fallback = False
        self.error: str | None = None
        self.read = False
        self._rows: Counter[str] = Counter()
        self._latencies: dict[str, Counter[int]] = {}

    def answered(self, server_id: str, rows: int, latency_s: float) -> None:
        """Count a request's answer."""
        self._rows[server_id] += rows
        self._latencies.setdefault(server_id, Counter())[bucket(latency_s)] += 1

    def tried_again(self, rows: int, *, elsewhere: bool) -> None:
        """Count a retry."""
        self.retries += 1
        self.rows_retried += rows
        self.failovers += elsewhere

    def computed_here(self, numeric_kind: str, note: str) -> None:
        """Count the call as one that no server has answered; what one did of it is not used."""
        self.fallback, self.numeric_kind = True, numeric_kind
        self._rows.clear()
        self._latencies.clear()
        self.note(note)

    def note(self, text: str) -> None:
        """Keep what a report should warn of, once."""
        self._notes[text] = None

    def record(self) -> CallRecord:
        """Return what is known now."""
        servers = {
            server_id: ServerShare(self._rows[server_id], sum(counts.values()), dict(sorted(counts.items())))
            for server_id, counts in tuple(self._latencies.items())
        }
        return CallRecord(
            self.model.name,
            self.model.version,
            rows=self.rows,
            requests=self.requests,
            retries=self.retries,
            rows_retried=self.rows_retried,
            failovers=self.failovers,
            waiting_s=self.waiting_s,
            servers=servers,
            numeric_kind=self.numeric_kind,
            source_digest=self.model.source_digest,
            fallback=self.fallback,
            nans=self.nans,
            notes=tuple(self._notes),
            error=self.error,
            read=self.read,
        )


class Call(Future[dict[str, Array]]):
    """A call under way; made by :meth:`.session.Session.submit`.

    Attributes
    ----------
    ledger
        What it did and cost so far.
    chunk
        Which chunk asked, as text; None outside of chunks.
    """

    def __init__(self, ledger: Ledger, chunk: str | None = None) -> None:
        super().__init__()
        self.ledger = ledger
        self.chunk = chunk
        self._pid = os.getpid()

    @property
    def context(self) -> dict[str, object]:
        """What each of its errors says of it."""
        return {"model": f"{self.ledger.model.name} version {self.ledger.model.version}", "chunk": self.chunk}

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the call is done, well or not, or for `timeout` s; return whether it is done.

        Raises
        ------
        InferenceError
            The call belongs to the process that this one was forked from.
        """
        if self.done():
            return True
        if os.getpid() != self._pid:
            raise InferenceError(
                "The call was sent by another process, from which this one was forked.",
                hint="Read results before forking, or call the model in the process that needs them.",
            ).at(**self.context)
        start = time.monotonic()
        try:
            super().exception(timeout)
        except (CancelledError, TimeoutError):
            pass  # that is what done() tells
        finally:
            self.ledger.waiting_s += time.monotonic() - start
        return self.done()

    @override
    def result(self, timeout: float | None = None) -> dict[str, Array]:
        """Wait and return the outputs, by name, as read-only arrays.

        Raises
        ------
        SonicError
            The call failed, was cancelled, or is not done after `timeout` s.
        """
        if not self.wait(timeout):
            raise DeadlineError(f"There was no result after {timeout} s.").at(**self.context)
        self.ledger.read = True
        if self.cancelled():
            raise InferenceError("The call was cancelled before its result came.").at(**self.context)
        error = super().exception()
        if isinstance(error, SonicError):
            # A copy: the traceback of one that is raised at each reading would grow.
            raise error.at()
        return super().result()

    @override
    def cancel(self) -> bool:
        """Give the call up; return False if it is done."""
        cancelled = super().cancel()
        if cancelled:
            self.ledger.error = "cancelled"
        return cancelled

    def finish(self, outcome: dict[str, Array] | SonicError) -> bool:
        """Give the call its outcome; return False if it was cancelled before."""
        if not self.set_running_or_notify_cancel():
            return False
        if isinstance(outcome, SonicError):
            self.ledger.error = str(outcome)
            self.set_exception(outcome)
        else:
            self.set_result(outcome)
        return True
