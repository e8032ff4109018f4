"""Follows the registry's table, and tells when the registry is gone for good."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from sonic_parsl.client.retry import backoff
from sonic_parsl.errors import PoolError, PoolLostError
from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import LEASE_S, ServerTable
from sonic_parsl.rpc import RegistryStub

GRACE_S = LEASE_S + 5.0
"""Without a registry for so long, agents have stopped their servers; the slack is for their clocks and ours."""


async def follow(
    ref: PoolRef, on_table: Callable[[ServerTable], None], on_lost: Callable[[PoolError], None], *, grace_s: float
) -> None:
    """Call `on_table` with each table, `on_lost` when there is no hope of another. Ends by being cancelled.

    While the registry cannot be reached the last table stays good, for `grace_s` seconds; one that comes
    back later is followed again. A registry that refuses us is lost at once.
    """
    stub, rng = RegistryStub(ref), random.Random()
    failures = 0
    silent_since: float | None = time.monotonic()
    try:
        while True:
            try:
                async for table in stub.follow():
                    failures, silent_since = 0, None
                    on_table(table)
                problem: PoolError = PoolLostError("The pool's registry ended.", hint="Is the driver still running?")
            except PoolError as error:
                problem = error
            failures += 1
            now = time.monotonic()
            silent_since = silent_since or now
            if not isinstance(problem, PoolLostError) or now - silent_since > grace_s:
                on_lost(problem)
            await asyncio.sleep(backoff(failures, rng))
    finally:
        await stub.close()
