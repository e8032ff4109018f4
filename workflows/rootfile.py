"""Is a file on this machine a whole ROOT file, with a tree? Said before anything starts."""

from __future__ import annotations

import struct
from pathlib import Path

import uproot

from sonic_parsl.errors import DataError
from sonic_parsl.executors.chunks.explain import COPY_AGAIN, near, reason

BIG_FILE = 1_000_000
"""ROOT's version numbers from here on mean that positions in the file have 8 bytes."""
MAGIC, HEADER_BYTES = b"root", 20
TREES = ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple", "ROOT::Experimental::RNTuple")

CORRECT_PATH = "Correct its path; one that does not begin with / starts in the folder you are in."
NO_NAME = "Name it, or leave it out: a shell makes such a name of a variable that is not set."
NO_MATCH = "The shell found no file that matches: correct the pattern."
NOTHING_IN_IT = "It was closed before anything was written, or is damaged: copy it again, or leave it out."
LOOK_AT_IT = "Look at its permissions and its disk, copy it, or leave it out."


def check_root(name: str, tree: str) -> None:
    """Check a file and that `tree` is in it.

    Raises
    ------
    DataError
        It is missing, empty, cut off, of another kind or damaged, or has no such tree.
    """
    if not name:
        raise DataError("A file has an empty name.", hint=NO_NAME)
    path = Path(name)
    if path.is_dir():
        raise DataError(f"{name} is a folder.", hint=f"Name the files in it: {name.rstrip('/')}/*.root.")
    if not path.is_file():
        raise DataError(f"There is no file {name}.", hint=NO_MATCH if set("*?[") & set(name) else CORRECT_PATH)
    _check_whole(path, name)
    try:
        with uproot.open(name) as file:
            kinds = {key.partition(";")[0]: kind for key, kind in file.classnames().items()}
    except Exception as error:  # noqa: BLE001 - a damaged file fails in many ways
        raise DataError(f"{name} is not a readable ROOT file: {reason(error)}.", hint=COPY_AGAIN) from None
    trees = [key for key, kind in sorted(kinds.items()) if kind in TREES]
    if tree not in kinds:
        said = f"{name} has no tree '{tree}'; it has {', '.join(sorted(kinds)) or 'nothing'}."
        raise DataError(said, hint=_other_tree(name, trees) if trees else NOTHING_IN_IT)
    if kinds[tree] not in TREES:
        raise DataError(
            f"'{tree}' of {name} is a {kinds[tree]} and not a tree.",
            hint=near(tree, trees) if trees else "There is no tree in it.",
        )


def _other_tree(name: str, trees: list[str]) -> str:
    """Return how to name one of these trees."""
    return f'Name the tree in a fileset JSON: {{"dataset": {{"files": {{"{name}": "{trees[0]}"}}}}}}.'


def _check_whole(path: Path, name: str) -> None:
    """Compare the size of a file with the one in its header: uproot opens what ends in the middle of its events."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}.", hint=LOOK_AT_IT) from None
    if not size:
        raise DataError(f"{name} is empty.", hint=COPY_AGAIN)
    if not header.startswith(MAGIC):
        raise DataError(f"{name} is not a readable ROOT file: it begins with {header[:8]!r}.", hint="Name ROOT files.")
    whole = _size_in(header)
    if size < whole:
        raise DataError(f"{name} was cut off: it has {size} of {whole} bytes.", hint="Copy it again, or leave it out.")


def _size_in(header: bytes) -> int:
    """Return the size that a header names; that of the header where it is cut off itself."""
    if len(header) < HEADER_BYTES:
        return HEADER_BYTES
    version, _, small = struct.unpack(">iii", header[4:16])
    size: int = struct.unpack(">q", header[12:20])[0] if version >= BIG_FILE else small
    return size
