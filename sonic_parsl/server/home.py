"""What a server has on its node for itself: a folder, shared memory, processes. None of it outlives the server."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from typing_extensions import Self

from sonic_parsl.errors import ServerStartError
from sonic_parsl.server.guard import FOLDER, SHARED_MEMORY, Guard, sweep
from sonic_parsl.server.runtimes.shared_memory import new_shm_prefix

logger = logging.getLogger("sonic_parsl.agent")


class Home:
    """A place of one server's own, from its start to its end; a context manager.

    Attributes
    ----------
    folder
        Only this user can enter it.
    shm_prefix
        What the names of the server's shared memory begin with.
    guard
        Removes all of it at the end, also where the server is killed.

    Raises
    ------
    ServerStartError
        The node has no room for it.
    """

    def __init__(self) -> None:
        for left in sweep():
            logger.info("Put away what a server that was killed with its guard had left: %s", left)
        self.folder = Path(tempfile.gettempdir()) / f"{FOLDER}{uuid4().hex}"
        self.shm_prefix = new_shm_prefix()
        try:
            self.guard = Guard(self.shm_prefix, self.folder)
        except OSError as error:
            raise ServerStartError(
                f"The server's guard cannot be started with its lock in {SHARED_MEMORY}: {error.strerror}.",
                hint="Make room in the node's shared memory: Triton's python backend needs some, too.",
            ) from None

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(mode=0o700)
        except OSError as error:
            self.guard.dismiss()
            raise no_room("The server's own folder", error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.guard.dismiss()


def no_room(what: str, error: OSError) -> ServerStartError:
    """Return the error of a node that has no place for something."""
    return ServerStartError(
        f"{what} cannot be written to {tempfile.gettempdir()}: {error.strerror}.",
        hint="Make room in the node's temporary folder, or set TMPDIR in worker-init.",
    )
