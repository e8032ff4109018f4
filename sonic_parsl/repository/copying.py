"""A copy of a model's folder, as a server wants it."""

from __future__ import annotations

from pathlib import Path

from sonic_parsl.repository.digests import CHUNK_BYTES, reading
from sonic_parsl.repository.folder import Parsed, served_files


def copy_model(model: Parsed, to: Path) -> None:
    """Copy a model without the versions that are not served.

    Parameters
    ----------
    to
        The copy of its folder.

    Raises
    ------
    RepositoryError
        A file cannot be read.
    OSError
        The copy cannot be written.
    """
    for version in model.versions:  # an ensemble's are empty, and Triton wants them
        (to / version).mkdir(parents=True)
    for name, path in served_files(model.path, model.versions).items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        _copy_file(path, to / name)


def _copy_file(source: Path, target: Path) -> None:
    with reading(source):
        file = source.open("rb")
    with file, target.open("wb") as copy:
        while True:
            with reading(source):
                chunk = file.read(CHUNK_BYTES)
            if not chunk:
                break
            copy.write(chunk)
