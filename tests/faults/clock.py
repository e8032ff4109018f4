"""A wall clock that a test sets, for the processes that were started with it; their monotonic clock is the real one."""

from __future__ import annotations

import os
from pathlib import Path

import libfaketime

LIBRARY = Path(libfaketime.__file__).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
CHECKOUT = Path(__file__).parents[2]

SITE = """
import time

def _under(path, real=time.time, steady=time.monotonic):
    read, by = float("-inf"), 0.0

    def now():
        nonlocal read, by
        if steady() > read + 0.2:
            with open(path) as file:
                read, by = steady(), float(file.read())
        return real() + by

    return now

time.time = _under({path!r})
"""


class Clock:
    """A clock in a file.

    Parameters
    ----------
    folder
        Where its files go.

    Attributes
    ----------
    shell
        Line of a shell that puts what follows under this clock, by a library before the C library's.
    env
        Environment that puts Python's own ``time.time`` under this clock, also in processes that are started from
        there. It is for drivers, which the library would let hang now and then: it holds a lock while it reads
        the clock, and a process that is forked in this moment by one with threads has it for ever. It is not for
        clients of gRPC, which would hold a Python deadline against the clock of C.
    """

    def __init__(self, folder: Path) -> None:
        assert LIBRARY.is_file()
        self._file = folder / "clock"
        site = folder / "site"
        site.mkdir(parents=True, exist_ok=True)
        (site / "sitecustomize.py").write_text(SITE.format(path=str(self._file)))
        self.shell = (
            f"export PYTHONPATH={CHECKOUT} LD_PRELOAD={LIBRARY} FAKETIME_TIMESTAMP_FILE={self._file} "
            "FAKETIME_CACHE_DURATION=1 DONT_FAKE_MONOTONIC=1"
        )
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [site, CHECKOUT]))}
        self.jump(0)

    def jump(self, by_s: int) -> None:
        """Set how far it is from the real one."""
        scratch = self._file.with_suffix(".new")
        scratch.write_text(f"{by_s:+d}")
        scratch.replace(self._file)
