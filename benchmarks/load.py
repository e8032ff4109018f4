"""A steady load on a pool, and what becomes of it when one of the servers is struck. Runs on a worker."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import psutil

from sonic_parsl.client.call import Call
from sonic_parsl.client.session import Session
from sonic_parsl.client.sessions import session

ROWS = 512
"""Of a call: eight requests."""
CALLERS = 4
"""So many threads each have one call under way."""
WARM_UP_S = (1.0, 3.0)
"""The load runs so long before a server is struck: what is usual is known then, and any moment of a lease is as likely."""
SETTLED_S = 1.0
"""When no call had to ask again for so long, all that were affected are done."""
PATIENCE_S = 60.0
POLL_S = 0.05


class Load:
    """A steady load, and when each of its calls was done."""

    def __init__(self, ours: Session, model: str) -> None:
        self._session = ours
        self._model = model
        self._data: npt.NDArray[np.float32] = np.random.default_rng(1).normal(size=(ROWS, 4)).astype(np.float32)
        self._done: dict[Call, float | None] = {}
        self._ending = threading.Event()
        self.times_s: list[float] = []
        """Time of each call so far, in s."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep the load up; every row must be right."""
        with ThreadPoolExecutor(CALLERS) as pool:
            callers = [pool.submit(self._keep_calling) for _ in range(CALLERS)]
            try:
                yield
            finally:
                self._ending.set()
        for caller in callers:
            caller.result()

    def _keep_calling(self) -> None:
        model = self._session.served(self._model)
        while not self._ending.is_set():
            begun = time.monotonic()
            call = self._session.submit(model, {"INPUT0": self._data}, rows=ROWS)
            self._done[call] = None
            output = call.result()["OUTPUT0"]
            self._done[call] = done = time.monotonic()
            self.times_s.append(done - begun)
            np.testing.assert_array_equal(output, self._data)

    def asked_again(self) -> bool:
        """Return whether any call had to ask again."""
        return any(call.ledger.retries for call in tuple(self._done))

    def last_affected(self) -> float:
        """Wait until the calls that had to ask again are done; return when the last was."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            affected = [done for call, done in tuple(self._done.items()) if call.ledger.retries]
            finished = [done for done in affected if done is not None]
            if finished and len(finished) == len(affected) and time.monotonic() - max(finished) > SETTLED_S:
                return max(finished)
            time.sleep(POLL_S)
        raise TimeoutError(f"Affected calls are not done after {PATIENCE_S:g} s.")


def strike(model: str, blow: Callable[[], object]) -> float:
    """Let a blow fall on a server under load; return how long the last affected row took, in s."""
    load = Load(session(), model)
    with load.running():
        time.sleep(random.uniform(*WARM_UP_S))
        start = time.monotonic()
        blow()
        return load.last_affected() - start


def signal_at(address: str, number: int) -> None:
    """Send a signal to the server at an address."""
    triton_at(address).send_signal(signal.Signals(number))


class Kept(NamedTuple):
    """How the calls of a load fared.

    Attributes
    ----------
    longest_s
        Time of the longest one, in s.
    on_time
        Share of them that took no longer than twice the median.
    asked_again
        Whether any had to ask again.
    """

    longest_s: float
    on_time: float
    asked_again: bool


def keep_up(seconds: float, model: str) -> Kept:
    """Keep the load up for a while."""
    load = Load(session(), model)
    with load.running():
        time.sleep(seconds)
    times_s = np.array(load.times_s)
    return Kept(float(times_s.max()), float(np.mean(times_s <= 2 * np.median(times_s))), load.asked_again())


def triton_at(address: str) -> psutil.Process:
    """Return the process that listens at an address."""
    flag = f"--grpc-port={address.rpartition(':')[2]}"
    return next(process for process in psutil.process_iter(["cmdline"]) if flag in (process.info["cmdline"] or ()))
