"""SHA-256 of files and trees of files, the same wherever and whenever they were written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sonic_parsl.errors import RepositoryError

CHUNK_BYTES = 1 << 20
"""Model files may be larger than memory: they are read in pieces."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Translate what goes wrong with a file.

    Raises
    ------
    RepositoryError
        The system refuses to read `path` or something below it.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise RepositoryError(f"{where} cannot be read ({error.strerror}); make it readable or remove it.") from None


def is_ignored(name: str) -> bool:
    """Return whether a file or folder of this name is no part of a model: hidden, a cache, or a text for people."""
    return name.startswith(".") or name == "__pycache__" or name.endswith(".md")


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files below `folder` by their name relative to it, with ``/`` between the parts."""
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [name for name in folders if not is_ignored(name)]
        paths = [Path(parent, name) for name in names if not is_ignored(name)]
        found.update({path.relative_to(folder).as_posix(): path for path in paths})
    return found


def tree_digest(files: Mapping[str, Path]) -> str:
    """Return the SHA-256 of names and contents.

    Each name goes in behind its length and each content as its own SHA-256, so
    that no bytes of one can be taken for bytes of the other.

    Parameters
    ----------
    files
        Where the content of each name lies; their order does not matter.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    RepositoryError
        A file cannot be read.
    """
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        encoded = os.fsencode(name)
        total.update(len(encoded).to_bytes(8, "big"))
        total.update(encoded)
        total.update(_content_digest(path))
    return total.hexdigest()


def _content_digest(path: Path) -> bytes:
    content = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            content.update(chunk)
    return content.digest()


def _raise(error: OSError) -> None:
    raise error
