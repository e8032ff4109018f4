"""Triton in a container image, run by apptainer or singularity: the way for machines the wheel does not fit."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from sonic_parsl.devices import NUMBERED_BY
from sonic_parsl.errors import ConfigError, RuntimeMissingError
from sonic_parsl.server.runtimes.command import Command, TritonOptions, triton_flags

IMAGE_REPOSITORY, IMAGE_KEYS = Path("/models"), Path("/keys")
"""Where an image finds the model repository, and the server's certificate and key."""

BIND_SAFE = re.compile(r"[^:,]+")


@dataclass(frozen=True)
class ApptainerRuntime:
    """Triton in an image, run by apptainer (or singularity).

    Attributes
    ----------
    image
        A SIF file, a sandbox folder, or an address such as ``docker://nvcr.io/nvidia/tritonserver:24.10-py3``.
    gpu
        Whether it may see NVIDIA GPUs.
    """

    image: str
    gpu: bool = False

    @property
    def name(self) -> str:
        """The name a site file has for it."""
        return "apptainer"

    def problems(self) -> list[str]:
        """Return what is missing and how to get it."""
        found = []
        if _apptainer() is None:
            found.append("There is no apptainer here. Ask the site for it, load its module, or use the wheel runtime.")
        if "://" not in self.image and not Path(self.image).exists():
            found.append(
                f"The image {self.image} is not there. Make it with `apptainer pull {self.image} "
                "docker://nvcr.io/nvidia/tritonserver:24.10-py3`, on a disk that the server's node sees."
            )
        return found

    def backends(self) -> frozenset[str] | None:
        """Return None: what an image holds is known once it runs."""
        return None

    def command(self, options: TritonOptions) -> Command:
        """Return the command that starts Triton."""
        program = _apptainer()
        if program is None:
            raise RuntimeMissingError(self.problems()[0])
        repository = str(options.repository.absolute())
        if not BIND_SAFE.fullmatch(repository):
            raise ConfigError(
                f"Apptainer cannot bind the model repository {repository}: its path has a colon or a comma.",
                hint="Move it, or make a link to it.",
            )
        env = dict(os.environ)
        env.update(self._inside(Path(program).name.upper()))
        nv = ("--nv",) if self.gpu else ()
        binds = ["--bind", f"{repository}:{IMAGE_REPOSITORY}:ro"]
        if options.keys is not None:
            binds += ["--bind", f"{options.keys}:{IMAGE_KEYS}:ro"]
        argv = (program, "exec", "--cleanenv", "--no-home", *nv, *binds, self.image, "tritonserver")
        inside = replace(options, repository=IMAGE_REPOSITORY, keys=options.keys and IMAGE_KEYS)
        return Command((*argv, *triton_flags(inside)), env)

    def _inside(self, program: str) -> dict[str, str]:
        """Return the variables by which apptainer sets those inside, which ``--cleanenv`` empties."""
        numbers = {variable: os.environ.get(variable) for variable in NUMBERED_BY.values() if variable}
        hidden = {} if self.gpu else {NUMBERED_BY["gpu"]: ""}
        inside = {**numbers, **hidden, "PYTHONNOUSERSITE": "1"}
        return {f"{program}ENV_{key}": value for key, value in inside.items() if value is not None}


def _apptainer() -> str | None:
    return shutil.which("apptainer") or shutil.which("singularity")
