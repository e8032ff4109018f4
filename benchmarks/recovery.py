"""How long rows wait that were on their way to a server when it was killed, froze, or could not be reached any more."""

from __future__ import annotations

import os
import signal
from functools import partial

import parsl
from parsl.providers import LocalProvider

from benchmarks.harness import READY_S, Row, Timed, in_turns, script, serve, sooner
from sonic_parsl.client.retry import FLOOR_S
from sonic_parsl.executors.servers.server_executor import ServerExecutor
from sonic_parsl.executors.site import Site
from sonic_parsl.executors.workers.worker_executor import WORKERS
from sonic_parsl.pool.pool import ServerPool
from tests.faults.far import Far, InNamespace, far_place
from tests.leaks import wait_until

LEASE_S, QUICK_LEASE_S = 6.0, 3.0
"""Shorter than the default, so that the benchmark is done sooner."""
STEADY = Timed("steady", 20.0, instances=4)


def signal_from_worker(address: str, number: int, model: str) -> float:
    """Send a signal to a server, as a worker that asks both sees it."""
    from functools import partial

    from benchmarks.load import signal_at, strike

    return strike(model, partial(signal_at, address, number))


def cut_from_worker(far: Far, model: str) -> float:
    """Cut the wire to the place of a server, as a worker that asks both sees it."""
    from benchmarks.load import strike

    return strike(model, far.cut)


def time_lost(site: Site, number: signal.Signals) -> float:
    """Strike one of two servers; return how long the last affected row took, in s. Another one replaces it."""
    servers = site.pool.wait_ready(2, timeout_s=READY_S).ready
    app = parsl.python_app(signal_from_worker, executors=[WORKERS])
    return float(app(servers[0].info.address, number.value, STEADY.name).result())


def time_cut_off(site: Site, far: Far) -> float:
    """Cut off one of two servers; return how long the last affected row took, in s. It comes back, or another one."""
    before = {entry.info.id for entry in site.pool.wait_ready(2, timeout_s=READY_S).ready}
    took_s = float(parsl.python_app(cut_from_worker, executors=[WORKERS])(far, STEADY.name).result())
    wait_until(lambda: before - {entry.info.id for entry in site.pool.table.servers}, READY_S)
    far.mend()
    return took_s


def struck(rounds: int, lease_s: float, *, warm_up: bool) -> list[Row]:
    """Measure what signals cost."""
    with serve([STEADY], servers=2, lease_s=lease_s) as site:
        ways = [partial(time_lost, site, number) for number in (signal.SIGKILL, signal.SIGSTOP)]
        killed, frozen = in_turns(rounds, *ways, warm_up=warm_up)
    return [
        sooner("SIGKILL; peer: an attempt's time-out", killed, [FLOOR_S] * rounds, "s", 1.0),
        sooner("SIGSTOP; peer: a lease", frozen, [lease_s] * rounds, "s", 1.0),
    ]


def cut_off(rounds: int, lease_s: float, *, warm_up: bool) -> list[Row]:
    """Measure what it costs that the network to a server is cut; it lives in a network namespace."""
    with far_place() as far, serve([STEADY], lease_s=lease_s, address=far.interface) as site:
        assert isinstance(site.pool, ServerPool)
        (group,) = site.settings.servers.values()
        provider = LocalProvider(launcher=InNamespace(far.namespace))
        server = ServerExecutor("far", pool=site.pool, provider=provider, models=group.models, lease_s=lease_s)
        site.dfk.add_executors([server])
        (took,) = in_turns(rounds, partial(time_cut_off, site, far), warm_up=warm_up)
    return [sooner("network cut; peer: a lease and a time-out", took, [lease_s + FLOOR_S] * rounds, "s", 1.0)]


def measure(rounds: int, quick: bool) -> list[Row]:
    """Measure the time from a blow to one of two servers to the answer of the last affected row."""
    lease_s = QUICK_LEASE_S if quick else LEASE_S
    rows = struck(rounds, lease_s, warm_up=not quick)
    if os.geteuid() == 0:
        rows += cut_off(rounds, lease_s, warm_up=not quick)
    return rows


main = script(measure)

if __name__ == "__main__":
    main()
