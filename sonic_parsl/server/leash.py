"""Ties a command's life to that of the process that started it: where the parent is killed, the kernel ends the command.

Run as a script (``python -I -S leash.py SIGNAL PARENT COMMAND...``) this imports
nothing of the project: it adds some 25 ms to a start, and the command replaces it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
"""From ``linux/prctl.h``."""

NO_COMMAND = 127
"""Exit status where the command cannot be run, as shells have it."""


def leashed(argv: Sequence[str], *, death_signal: signal.Signals = signal.SIGKILL) -> list[str]:
    """Return the command that runs `argv` on a leash held by this process.

    The kernel sends `death_signal` when the *thread* that starts the command ends,
    so start it from one that lives as long as the command should. A program that
    is set-user-ID, or has capabilities, slips the leash.

    Parameters
    ----------
    argv
        Program, found on PATH, and its arguments.
    death_signal
        What the command gets when this process ends.
    """
    return [sys.executable, "-I", "-S", __file__, str(int(death_signal)), str(os.getpid()), *argv]


def follow(*, parent: int, death_signal: int) -> None:
    """Ask for `death_signal` at the end of the parent; end at once where it is gone already.

    Raises
    ------
    OSError
        The kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: Sequence[str]) -> int:
    """Become the command; return an exit status only where that fails."""
    death_signal, parent, *command = arguments
    try:
        follow(parent=int(parent), death_signal=int(death_signal))
        if os.getpgrp() != os.getpid():
            os.setsid()  # Ctrl-C in a terminal, or an interrupt in a notebook, is for the driver
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error.strerror}.\n")
    return NO_COMMAND


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
