"""One line that says how the pool stands, printed above coffea's progress bars whenever it changes."""

from __future__ import annotations

import threading
from collections import Counter

from rich.console import Console
from typing_extensions import Self

from sonic_parsl.pool.view import PoolView
from sonic_parsl.protocol import ServerTable

WAKE_S = 1.0


def describe(table: ServerTable) -> str:
    """Return how many servers are in which state."""
    if table.lost is not None:
        return "Pool: lost; where the site file allows it, workers compute for themselves"
    states = Counter(entry.state for entry in table.servers)
    return f"Pool: {states['ready']} ready, {states['starting']} starting, {states['draining']} draining"


class PoolLine:
    """Prints the pool's line while the ``with`` block runs.

    Parameters
    ----------
    console
        The console that the progress bars live on, so that lines come out above them.
    """

    def __init__(self, pool: PoolView, console: Console) -> None:
        self._pool = pool
        self._console = console
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sonic-parsl-pool-line", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        shown = describe(ServerTable(run_id="", generation=0))  # an empty pool is no news
        while not self._done.is_set():
            line = describe(self._pool.table)
            if line != shown:
                self._console.print(line, style="dim")
                shown = line
            self._pool.wait_for(lambda table, shown=shown: describe(table) != shown, WAKE_S)  # type: ignore[misc]
