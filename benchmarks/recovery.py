"""How long rows wait that were on their way to a server when it was killed, or froze."""

from __future__ import annotations

import signal
from functools import partial

import parsl

from benchmarks.harness import READY_S, Row, Timed, in_turns, script, serve, sooner
from sonic_parsl.client.retry import FLOOR_S
from sonic_parsl.executors.site import Site
from sonic_parsl.executors.worker_executor import WORKERS

LEASE_S, QUICK_LEASE_S = 6.0, 3.0
"""Shorter than the default, so that the benchmark is done sooner."""
STEADY = Timed("steady", 20.0, instances=4)


def on_worker(address: str, number: int, model: str) -> float:
    """Strike a server, as a worker that asks both sees it."""
    from benchmarks.load import strike

    return strike(address, number, model)


def time_lost(site: Site, number: signal.Signals) -> float:
    """Strike one of two servers; return how long the last affected row took, in s. Another one replaces it."""
    servers = site.pool.wait_ready(2, timeout_s=READY_S).ready
    app = parsl.python_app(on_worker, executors=[WORKERS])
    return float(app(servers[0].info.address, number.value, STEADY.name).result())


def measure(rounds: int, quick: bool) -> list[Row]:
    """Measure the time from a signal to one of two servers to the answer of the last affected row."""
    lease_s = QUICK_LEASE_S if quick else LEASE_S
    with serve([STEADY], servers=2, lease_s=lease_s) as site:
        killed, frozen = in_turns(
            rounds,
            partial(time_lost, site, signal.SIGKILL),
            partial(time_lost, site, signal.SIGSTOP),
            warm_up=not quick,
        )
    return [
        sooner("SIGKILL; peer: an attempt's time-out", killed, [FLOOR_S] * rounds, "s", 1.0),
        sooner("SIGSTOP; peer: a lease", frozen, [lease_s] * rounds, "s", 1.0),
    ]


main = script(measure)

if __name__ == "__main__":
    main()
