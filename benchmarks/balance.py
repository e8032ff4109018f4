"""How much of unequal servers processes use that know nothing of each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial

from benchmarks.askers import by_pool, in_turn, processes
from benchmarks.harness import Row, Timed, faster, in_turns, script, serve
from sonic_parsl.executors.site import Site

MODEL = "steady"
FAST_MS = 10.0
OTHERS = {"equally fast": (FAST_MS, None), "ten times slower": (10 * FAST_MS, 3.0)}
"""Service time of the other server, and the ratio to reach. Both serve one request after the other."""
PROCESSES = 6
"""Each has one request under way."""
SECONDS, QUICK_SECONDS = 10.0, 1.0


def rate(everybody: Executor, seconds: float, ask: Callable[..., int], each: Sequence[tuple[object, ...]]) -> float:
    """Return the requests a second of all processes together; `each` gets its arguments."""
    counts = [everybody.submit(ask, seconds, MODEL, *arguments) for arguments in each]
    return sum(count.result() for count in counts) / seconds


def compare(site: Site, rounds: int, seconds: float) -> list[list[float]]:
    """Return the rates by the pool and in turns."""
    addresses = [entry.info.address for entry in site.pool.table.ready]
    with processes(PROCESSES) as everybody:
        return in_turns(
            rounds,
            partial(rate, everybody, seconds, by_pool, [(site.pool.ref,)] * PROCESSES),
            partial(rate, everybody, seconds, in_turn, [(addresses, number) for number in range(PROCESSES)]),
        )


def measure(rounds: int, quick: bool) -> list[Row]:
    """Measure the rate at which two servers answer six processes, each with one request under way; peer: in turns."""
    rows = []
    for what, (other_ms, reach) in OTHERS.items():
        groups = [[Timed(MODEL, service_ms)] for service_ms in (FAST_MS, other_ms)]
        with serve(*groups, tls=False) as site:
            ours, peer = compare(site, rounds, QUICK_SECONDS if quick else SECONDS)
        rows.append(faster(f"the other server is {what}", ours, peer, "requests/s", reach))
    return rows


main = script(measure)

if __name__ == "__main__":
    main()
