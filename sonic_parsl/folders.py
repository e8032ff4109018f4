"""Folders that a user names, made with a sentence for what is wrong with them."""

from __future__ import annotations

from pathlib import Path

from sonic_parsl.errors import ConfigError

STATE = "Correct XDG_STATE_HOME, under which pools and runs have their files."


def make_folder(folder: Path, *, hint: str, mode: int = 0o777, exist_ok: bool = True) -> None:
    """Make a folder and those above it.

    Parameters
    ----------
    hint
        How to name another one.

    Raises
    ------
    ConfigError
        It cannot be made.
    """
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise ConfigError(f"The folder {folder} cannot be made: {error.strerror}.", hint=hint) from None
