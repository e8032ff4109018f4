"""Another user of this machine: a process without the rights of the one that runs the tests."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

UID = 65_534
"""``nobody``: a user that every machine has, since some libraries look a name up."""


def as_another_user(command: Sequence[str | Path], *, sees: Iterable[Path]) -> list[str]:
    """Return the command that runs `command` as another user; the caller has to be root.

    Interpreter, packages and caches often lie in a home that other users cannot enter. The command gets a
    mount namespace of its own, in which such a home is empty but for what it needs, at the same paths.

    Parameters
    ----------
    sees
        Folders that the command has to see.
    """
    lines = [f"set -e; kept=$(mktemp -d {tempfile.gettempdir()}/other-user-XXXXXX)"]
    needed = {Path(sys.prefix), Path(sys.base_prefix), *map(Path, sees)}
    for home in sorted({closed for path in needed if (closed := _closed(path)) is not None}):
        inside = [path for path in sorted(needed) if home in path.parents]
        lines += [f"mount --bind {home} $kept", f"mount -t tmpfs -o mode=0755 tmpfs {home}"]
        lines += [f"mkdir -p {path}; mount --bind $kept/{path.relative_to(home)} {path}" for path in inside]
        lines += ["umount $kept"]
    lines += ["rmdir $kept"]
    drop = f"setpriv --reuid={UID} --regid={UID} --clear-groups --inh-caps=-all --bounding-set=-all"
    lines += [f"exec {drop} {shlex.join(map(str, command))}"]
    return ["unshare", "--mount", "bash", "-c", "\n".join(lines)]


def _closed(path: Path) -> Path | None:
    """Return the outermost folder on the way to `path` that others cannot enter."""
    return next((part for part in reversed(path.parents) if not part.stat().st_mode & os.X_OK & 0o001), None)
