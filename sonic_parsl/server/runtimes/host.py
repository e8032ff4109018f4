"""The machine's own Triton."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from sonic_parsl.errors import RuntimeMissingError
from sonic_parsl.server.runtimes.command import Command, TritonOptions, folders_in, triton_flags, without_foreign


@dataclass(frozen=True)
class HostRuntime:
    """The ``tritonserver`` of this machine or container.

    Attributes
    ----------
    binary
        Its name on PATH or its path.
    gpu
        Whether it may see GPUs.
    """

    binary: str = "tritonserver"
    gpu: bool = False

    @property
    def name(self) -> str:
        """The name a site file has for it."""
        return "host"

    def problems(self) -> list[str]:
        """Return what is missing and how to get it."""
        if shutil.which(self.binary):
            return []
        return [
            f"There is no {self.binary} here. Load the site's module for it, or use the apptainer or wheel runtime."
        ]

    def backends(self) -> frozenset[str] | None:
        """Return the names of the backends beside the binary."""
        path = shutil.which(self.binary)
        folder = Path(path).resolve().parent.parent / "backends" if path else None
        return folders_in(folder) if folder and folder.is_dir() else None

    def command(self, options: TritonOptions) -> Command:
        """Return the command that starts Triton."""
        path = shutil.which(self.binary)
        if path is None:
            raise RuntimeMissingError(self.problems()[0])
        env = without_foreign(os.environ)
        env["PATH"] = _without_own_python(env.get("PATH", os.defpath))
        env["PYTHONNOUSERSITE"] = "1"
        if not self.gpu:
            env["CUDA_VISIBLE_DEVICES"] = ""
        return Command((path, *triton_flags(options)), env)


def _without_own_python(path: str) -> str:
    """Return PATH without this virtual environment: Triton's python backend takes the first ``python3`` there."""
    if sys.prefix == sys.base_prefix:
        return path
    own = str(Path(sys.prefix, "bin"))
    return os.pathsep.join(folder for folder in path.split(os.pathsep) if folder.rstrip("/") != own)
