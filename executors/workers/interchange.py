"""Parsl's interchange, whose clock nobody sets: ``python -m sonic_parsl.executors.workers.interchange``."""

from __future__ import annotations

import runpy

from parsl.executors.high_throughput import interchange

from sonic_parsl.executors.steady_clock import keep_steady

if __name__ == "__main__":
    keep_steady()
    runpy.run_path(interchange.__file__, run_name="__main__")  # it reads what it is to do from its standard input
