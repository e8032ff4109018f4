"""What a batch system says: of a job that does not start, of its limits, and whether it says anything."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from parsl.providers.base import ExecutionProvider

from sonic_parsl.executors.batch.dialects import dialect_of

ASK_S = 20
"""A busy scheduler takes seconds to answer."""
SILENCE = "the batch system does not say why it waits"


def why_waiting(provider: ExecutionProvider, job_id: str) -> str:
    """Return why a job waits, in the batch system's words."""
    dialect = dialect_of(provider)
    if dialect is None or not dialect.why_waiting:
        return SILENCE
    answers, said = ask([*dialect.why_waiting, job_id])
    found = dialect.reason.search(said) if answers else None
    return (found[1].strip() if found else "") or SILENCE


def ask(command: Sequence[str]) -> tuple[bool, str]:
    """Return whether a command of the batch system succeeds, and what it says."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_S, check=False
        )
    except OSError as error:
        return False, str(error.strerror)
    except subprocess.TimeoutExpired:
        return False, f"no answer within {ASK_S} s"
    return done.returncode == 0, done.stdout or done.stderr
