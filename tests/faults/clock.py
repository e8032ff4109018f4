"""A wall clock that a test sets, for processes that were started with it; their monotonic clock is the real one."""

from __future__ import annotations

from pathlib import Path

import libfaketime

LIBRARY = Path(libfaketime.__file__).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"


class Clock:
    """A clock in a file.

    Attributes
    ----------
    shell
        Line of a shell that puts what follows under this clock.
    """

    def __init__(self, path: Path) -> None:
        assert LIBRARY.is_file()
        self._path = path
        self.shell = f"export LD_PRELOAD={LIBRARY} FAKETIME_TIMESTAMP_FILE={path} FAKETIME_CACHE_DURATION=1 DONT_FAKE_MONOTONIC=1"
        self.jump("+0")

    def jump(self, by: str) -> None:
        """Set how far it is from the real one, for example ``+2h`` or ``-90m``."""
        scratch = self._path.with_suffix(".new")
        scratch.write_text(by)
        scratch.replace(self._path)
