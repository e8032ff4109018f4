"""The cost of the way to a server: the same requests to one server by raw tritonclient and by us."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient import grpc as triton

from benchmarks.harness import Identity, Row, faster, in_turns, script, serve
from sonic_parsl import Model
from sonic_parsl.client.session import Session
from sonic_parsl.client.sessions import session
from sonic_parsl.executors.site import Site

IN_FLIGHT = 16
REQUESTS = {1: 2000, 64: 2000, 1024: 500}
"""Rows of a request: how many requests a turn sends. Each turn takes about a second."""
REACH = {1: None, 64: 1.0, 1024: 1.0}
"""For all rows in one call, as a chunk sends them. A call for each request has its own future, deadline and record,
and a Model makes columns, which raw tritonclient does not: nothing is set for them."""
UNIT = "requests/s"
ONE_BY_ONE, QUICK = 4, 20
"""So many times fewer requests are sent one at a time, and in a quick run."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Work:
    """What every way sends: `data`, in requests of `rows` rows."""

    rows: int
    data: Array

    @property
    def model(self) -> str:
        """The model that takes no more than so many rows at once."""
        return f"identity_{self.rows}"

    @property
    def parts(self) -> list[Array]:
        """The rows of each request."""
        return [self.data[start : start + self.rows] for start in range(0, len(self.data), self.rows)]

    def head(self, share: int) -> Work:
        """Return the first part of it, `share` times smaller."""
        return Work(self.rows, self.data[: len(self.parts) // share * self.rows])


def work(rows: int, share: int) -> Work:
    """Return work of requests that differ, as an analysis has them."""
    shape = (REQUESTS[rows] // share * rows, Identity.WIDTH)
    return Work(rows, np.random.default_rng(1).normal(size=shape).astype(np.float32))


# Ways to send it: each returns the outputs, in order -------------------------------


def raw_one_by_one(client: Any, work: Work) -> list[Array]:
    """Send by ``infer``."""
    return [client.infer(work.model, **_raw(part)).as_numpy("OUTPUT0") for part in work.parts]


def raw_async(client: Any, work: Work) -> list[Array]:
    """Send by ``async_infer``, several in flight."""
    parts = work.parts
    answers: list[Any] = [None] * len(parts)
    room = threading.Semaphore(IN_FLIGHT)

    def done(number: int, result: Any, error: Exception | None) -> None:
        answers[number] = error or result.as_numpy("OUTPUT0")  # what is raised here, the client swallows
        room.release()

    for number, part in enumerate(parts):
        room.acquire()
        client.async_infer(work.model, callback=partial(done, number), **_raw(part))
    return _all(answers, room)


def _raw(part: Array) -> dict[str, Any]:
    tensor = triton.InferInput("INPUT0", part.shape, "FP32")
    tensor.set_data_from_numpy(part)
    return {"inputs": [tensor], "outputs": [triton.InferRequestedOutput("OUTPUT0")]}


def ours_one_by_one(ours: Session, work: Work) -> list[Array]:
    """Send by ``Session.submit``, waiting for each result."""
    model = ours.served(work.model)
    return [ours.submit(model, {"INPUT0": part}, rows=work.rows).result()["OUTPUT0"] for part in work.parts]


def ours_calls(ours: Session, work: Work) -> list[Array]:
    """Send by ``Session.submit``, a call for each request, several in flight."""
    model, parts = ours.served(work.model), work.parts
    answers: list[Any] = [None] * len(parts)
    room = threading.Semaphore(IN_FLIGHT)

    def done(number: int, call: Future[dict[str, Any]]) -> None:
        answers[number] = call.exception() or call.result()["OUTPUT0"]
        room.release()

    for number, part in enumerate(parts):
        room.acquire()
        ours.submit(model, {"INPUT0": part}, rows=work.rows).add_done_callback(partial(done, number))
    return _all(answers, room)


def _all(answers: list[Any], room: threading.Semaphore) -> list[Array]:
    """Wait until nothing is in flight; return the answers, or raise what came instead of one."""
    for _ in range(IN_FLIGHT):
        room.acquire()
    for error in answers:
        if isinstance(error, Exception):
            raise error
    return answers


def ours_one_call(ours: Session, work: Work) -> list[Array]:
    """Send by ``Session.submit``, all rows in one call, as a chunk's are; the session makes the requests."""
    call = ours.submit(ours.served(work.model), {"INPUT0": work.data}, rows=len(work.data))
    return np.split(call.result()["OUTPUT0"], len(work.parts))


def ours_model(_: Session, work: Work) -> list[Array]:
    """Send by calling a ``Model``; the answer is a record of one field an output."""
    model = Model(work.model, outputs=[f"y{i}" for i in range(Identity.WIDTH)])
    scores = model(work.data, lazy=False)
    return [scores[name].to_numpy() for name in scores.fields]


def rate(send: Callable[[Any, Work], list[Array]], way: Any, work: Work) -> float:
    """Return requests per second."""
    start = time.perf_counter()
    send(way, work)
    return len(work.parts) / (time.perf_counter() - start)


# The benchmark -----------------------------------------------------------------


@contextmanager
def raw_client(site: Site) -> Iterator[Any]:
    """Connect a tritonclient to the site's server, with the same certificate as ours where there is one."""
    peer = site.pool.ref.server(site.pool.table.ready[0].info)
    options: dict[str, Any] = {}
    if peer.secure:
        pems = (peer.authority, peer.key, peer.certificate)
        options["creds"] = grpc.ssl_channel_credentials(*(str(pem).encode() for pem in pems))
        # What is given here replaces the client's own defaults, the bounds on messages among them.
        unbounded = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
        options["channel_args"] = [("grpc.ssl_target_name_override", peer.name), *unbounded]
    with triton.InferenceServerClient(peer.address, **options) as client:
        yield client


def compare(raw: Any, ours: Session, rows: int, rounds: int, share: int, how: str) -> list[Row]:
    """Measure requests of so many rows."""
    everything = work(rows, share)
    check(raw, ours, everything.head(2))
    few = everything.head(ONE_BY_ONE)
    sync, raw_sync = in_turns(
        rounds, partial(rate, ours_one_by_one, ours, few), partial(rate, raw_one_by_one, raw, few)
    )
    ways = {"calls": ours_calls, "one call": ours_one_call, "one call of a Model": ours_model}
    *found, peer = in_turns(
        rounds,
        *(partial(rate, send, ours, everything) for send in ways.values()),
        partial(rate, raw_async, raw, everything),
    )
    size = f"{rows} row{'s' * (rows > 1)}, {how}"
    return [
        faster(f"{size}, one by one", sync, raw_sync, UNIT),
        *(
            faster(f"{size}, {name}", values, peer, UNIT, REACH[rows] if send is ours_one_call else None)
            for (name, send), values in zip(ways.items(), found, strict=True)
        ),
    ]


def check(raw: Any, ours: Session, work: Work) -> None:
    """Check that all ways bring the same numbers, those that were sent."""
    for send, way in (
        (raw_async, raw),
        (raw_one_by_one, raw),
        (ours_one_by_one, ours),
        (ours_calls, ours),
        (ours_one_call, ours),
    ):
        np.testing.assert_array_equal(np.concatenate(send(way, work)), work.data)
    np.testing.assert_array_equal(np.stack(ours_model(ours, work), axis=1), work.data)


def measure(rounds: int, quick: bool) -> list[Row]:
    """Measure requests per second to one Triton, identity of 32 floats: ours beside raw tritonclient."""
    found = []
    for tls in (False, True):
        with serve([*map(Identity, REQUESTS)], tls=tls) as site, raw_client(site) as raw:
            ours = session(site.pool.ref)
            for rows in REQUESTS:
                found += compare(raw, ours, rows, rounds, QUICK if quick else 1, "TLS" if tls else "plain")
    return found


main = script(measure)

if __name__ == "__main__":
    main()
