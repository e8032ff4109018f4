"""Is an installed Triton whole? Compared with the lists of files that its packages came with."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("nvidia_pytriton", "numpy", "onnxruntime")
"""What a server runs on; damage elsewhere shows in what Triton writes."""
COPIES = ("libtriton_python.so", "triton_python_backend_utils.py")
"""Files of Triton's own that the backend folder has copies of."""


def damage(folder: Path) -> str | None:
    """Return what is missing or cut off in an installation, or None; sizes are looked at, contents are not."""
    return next(_problems(folder), None)


def _problems(folder: Path) -> Iterator[str]:
    sites = [folder / "triton", *folder.glob("python/lib/python3*/site-packages")]
    for package in PACKAGES:
        records = [record for site in sites for record in site.glob(f"{package}-*.dist-info/RECORD")]
        if not records:
            yield f"the package {package} is missing"
        for path, size in (listed for record in records for listed in _listed(record)):
            yield from _compare(path, size)
    own = folder / "triton/pytriton/tritonserver/backends/python"
    for name in COPIES:
        yield from _compare(folder / "backends/python" / name, (own / name).stat().st_size)


def _listed(record: Path) -> Iterator[tuple[Path, int]]:
    """Yield the files in a package's list, and the bytes each should have, but what is written anew: scripts, .pyc."""
    with record.open(newline="") as file:
        for name, _, size in csv.reader(file):
            if size and not name.startswith("..") and not name.endswith(".pyc"):
                yield record.parents[1] / name, int(size)


def _compare(path: Path, size: int) -> Iterator[str]:
    found = path.stat().st_size if path.is_file() else None
    if found is None:
        yield f"{path} is missing"
    elif found != size:
        yield f"{path} has {found} of {size} bytes"
