"""Logs in a run's folder: ours, and Parsl's."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path


def log_to(path: Path) -> logging.Handler:
    """Let what sonic_parsl logs go to a file, too."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("sonic_parsl")
    root.addHandler(handler)
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
    return handler


def parsl_log_handlers(folder: Path) -> list[logging.Handler]:
    """Return what writes parsl.log: Parsl does not close it at its cleanup, and keeps it where its start failed."""
    handlers = logging.getLogger("parsl").handlers
    return [handler for handler in handlers if getattr(handler, "baseFilename", "").startswith(f"{folder}/")]


def close_log(handler: logging.Handler, name: str) -> None:
    """Take a handler from the logger `name`, and close its file."""
    logging.getLogger(name).removeHandler(handler)
    with suppress(OSError):  # on a full disk the last lines are lost
        handler.close()
