"""Processes that ask servers for one request after the other, all at the same time, by ours or by raw clients."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferenceServerClient, InferInput

from sonic_parsl.client.sessions import session
from sonic_parsl.poolref import PoolRef

DATA = np.ones((16, 4), np.float32)
WARM_UP_S = 1.0
PATIENCE_S = 60.0

_together: Barrier


@contextmanager
def processes(count: int) -> Iterator[Executor]:
    """Yield so many processes, to each of which goes one of so many tasks."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, spawning, _meet_at, (spawning.Barrier(count),)) as everybody:
        yield everybody


def _meet_at(barrier: Barrier) -> None:
    global _together  # noqa: PLW0603 - a barrier reaches a process only where it starts
    _together = barrier


def by_pool(seconds: float, model: str, ref: PoolRef) -> int:
    """Return how many requests a pool has answered in so many seconds."""
    ours = session(ref)
    served = ours.served(model)
    return _count(seconds, lambda: ours.submit(served, {"INPUT0": DATA}, rows=len(DATA)).result()["OUTPUT0"])


def in_turn(seconds: float, model: str, addresses: Sequence[str], first: int) -> int:
    """Return how many requests servers have answered that are asked in turns, as proxies ask them."""
    tensor = InferInput("INPUT0", list(DATA.shape), "FP32")
    tensor.set_data_from_numpy(DATA)
    clients = [InferenceServerClient(address) for address in addresses]
    turns = itertools.islice(itertools.cycle(clients), first, None)
    try:
        return _count(seconds, lambda: next(turns).infer(model, [tensor]).as_numpy("OUTPUT0"))
    finally:
        for client in clients:
            client.close()


def _count(seconds: float, ask: Callable[[], npt.NDArray[np.float32]]) -> int:
    ask()
    _together.wait(PATIENCE_S)
    start, count = time.monotonic() + WARM_UP_S, 0
    while (now := time.monotonic()) < start + seconds:
        assert (ask() == DATA).all()
        count += now >= start
    return count
