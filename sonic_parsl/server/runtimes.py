"""Ways to run a real Triton: out of the wheel, the machine's own, or in an apptainer image.

A runtime says what it lacks and which backends it has, and turns
:class:`TritonOptions` into a :class:`Command`. It starts nothing itself.
Triton serves gRPC only: its HTTP and metrics ports are off.
"""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from sonic_parsl.errors import ConfigError, RuntimeMissingError
from sonic_parsl.server import install

SHARED_MEMORY = Path("/dev/shm")
UUID = "-".join("?" * length for length in (8, 4, 4, 4, 12))
"""What Triton adds to the prefix of a region's name, as a glob."""

IMAGE_REPOSITORY = "/models"
"""Where an image finds the model repository."""

SHELL_SAFE = re.compile(r"[\w./+@%=:,~-]+")
BIND_SAFE = re.compile(r"[^:,]+")

FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "VIRTUAL_ENV", "LD_PRELOAD")
"""Variables that would lead the server's Python into the environment of the analysis, and to its numpy."""


def new_shm_prefix() -> str:
    """Return a name no other server's shared memory begins with."""
    return f"sonic-{secrets.token_hex(8)}-"


@dataclass(frozen=True)
class TritonOptions:
    """What a server is started with.

    Attributes
    ----------
    repository
        Model repository.
    models
        Models to load at the start.
    address, port
        Where gRPC listens.
    exit_timeout_s
        How long Triton waits for requests in flight after SIGTERM.
    shm_prefix
        What the names of its shared memory begin with, see :func:`remove_shared_memory`.
    """

    repository: Path
    models: tuple[str, ...]
    address: str
    port: int
    exit_timeout_s: int = 10
    shm_prefix: str = field(default_factory=new_shm_prefix)

    def on_port(self, port: int) -> TritonOptions:
        """Return the same on another port."""
        return replace(self, port=port)


@dataclass(frozen=True)
class Command:
    """A process to start: its arguments and its whole environment."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(repr=False)


class Runtime(Protocol):
    """A way to run Triton on this machine."""

    @property
    def name(self) -> str:
        """The name a site file has for it."""

    def problems(self) -> list[str]:
        """Return what is missing and how to get it, a sentence each; nothing where it is usable."""

    def backends(self) -> frozenset[str] | None:
        """Return the names of the backends it has; None where that cannot be known."""

    def command(self, options: TritonOptions) -> Command:
        """Return the command that starts Triton.

        Raises
        ------
        RuntimeMissingError
            It is not usable here.
        ConfigError
            It cannot serve this repository.
        """


@dataclass(frozen=True)
class WheelRuntime:
    """NVIDIA's own binary out of the nvidia-pytriton wheel, on the CPU."""

    gpu: bool = False

    @property
    def name(self) -> str:
        """The name a site file has for it."""
        return "wheel"

    def problems(self) -> list[str]:
        """Return what is missing and how to get it."""
        found = install.machine_problems()
        if self.gpu:
            found.append("The wheel runtime computes on the CPU only. Use the host or the apptainer runtime for GPUs.")
        try:
            folder = install.find().folder
        except RuntimeMissingError as error:
            return [*found, str(error)]
        if not SHELL_SAFE.fullmatch(str(folder)):
            found.append(f"Triton's python backend hangs where its path {folder} needs quoting. Set SONIC_PARSL_CACHE.")
        return found

    def backends(self) -> frozenset[str] | None:
        """Return the names of the backends it has."""
        return _folders_in(install.find().backends)

    def command(self, options: TritonOptions) -> Command:
        """Return the command that starts Triton."""
        for problem in self.problems():
            raise RuntimeMissingError(problem)
        _refuse_what_a_shell_reads(options)
        installed = install.find()
        env = _without_foreign(os.environ)
        env["LD_LIBRARY_PATH"] = ":".join(installed.libraries)
        env["PATH"] = _joined(installed.python_bin, env.get("PATH", os.defpath))
        env["PYTHONNOUSERSITE"] = "1"
        env["CUDA_VISIBLE_DEVICES"] = ""
        flags = _flags(options, repository=str(options.repository.absolute()))
        return Command((str(installed.tritonserver), *flags, f"--backend-directory={installed.backends}"), env)


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
        return _folders_in(folder) if folder and folder.is_dir() else None

    def command(self, options: TritonOptions) -> Command:
        """Return the command that starts Triton."""
        path = shutil.which(self.binary)
        if path is None:
            raise RuntimeMissingError(self.problems()[0])
        env = _without_foreign(os.environ)
        env["PATH"] = _without_own_python(env.get("PATH", os.defpath))
        env["PYTHONNOUSERSITE"] = "1"
        if not self.gpu:
            env["CUDA_VISIBLE_DEVICES"] = ""
        return Command((path, *_flags(options, repository=str(options.repository.absolute()))), env)


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
        bind = f"{repository}:{IMAGE_REPOSITORY}:ro"
        argv = (program, "exec", "--cleanenv", "--no-home", *nv, "--bind", bind, self.image, "tritonserver")
        return Command((*argv, *_flags(options, repository=IMAGE_REPOSITORY)), env)

    def _inside(self, program: str) -> dict[str, str]:
        """Return the variables by which apptainer sets those inside, which ``--cleanenv`` empties."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") if self.gpu else ""
        inside = {"PYTHONNOUSERSITE": "1", "CUDA_VISIBLE_DEVICES": visible}
        return {f"{program}ENV_{key}": value for key, value in inside.items() if value is not None}


RUNTIMES = ("wheel", "host", "apptainer")


def runtime(name: str, *, image: str | None = None, binary: str | None = None, gpu: bool = False) -> Runtime:
    """Return a runtime by its name in a site file.

    Parameters
    ----------
    name
        ``wheel``, ``host`` or ``apptainer``.
    image
        For ``apptainer``: the image.
    binary
        For ``host``: name or path of the server.
    gpu
        Whether the server may see GPUs.

    Raises
    ------
    ConfigError
        No runtime has this name, or the image is missing.
    """
    if name == "wheel":
        return WheelRuntime(gpu=gpu)
    if name == "host":
        return HostRuntime(binary=binary or "tritonserver", gpu=gpu)
    if name != "apptainer":
        raise ConfigError(f"There is no runtime named {name!r}.", hint=f"Choose one of {', '.join(RUNTIMES)}.")
    if not image:
        raise ConfigError(
            "The apptainer runtime needs an image.",
            hint="Name a SIF file or an address such as docker://nvcr.io/nvidia/tritonserver:24.10-py3.",
        )
    return ApptainerRuntime(image=image, gpu=gpu)


def remove_shared_memory(prefix: str) -> int:
    """Remove what a server that is gone left in shared memory; return how many regions.

    Triton and its python stubs remove theirs, also when Triton alone is killed;
    where all are killed at once, as batch systems do, nobody does.

    Parameters
    ----------
    prefix
        :attr:`TritonOptions.shm_prefix` of that server.

    Raises
    ------
    ValueError
        The prefix is empty: that would be everybody's.
    """
    if not prefix:
        raise ValueError("an empty prefix is no server's")
    left = list(SHARED_MEMORY.glob(f"{glob.escape(prefix)}{UUID}"))
    for region in left:
        region.unlink(missing_ok=True)
    return len(left)


def _flags(options: TritonOptions, *, repository: str) -> tuple[str, ...]:
    return (
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in options.models),
        f"--grpc-address={options.address}",
        f"--grpc-port={options.port}",
        "--allow-http=false",
        "--allow-metrics=false",
        f"--exit-timeout-secs={options.exit_timeout_s}",
        f"--backend-config=python,shm-region-prefix-name={options.shm_prefix}",
    )


def _refuse_what_a_shell_reads(options: TritonOptions) -> None:
    """Raise where Triton's python backend, which starts its stubs by an unquoted shell command, would hang."""
    for value in (str(options.repository.absolute()), *options.models, options.shm_prefix):
        if not SHELL_SAFE.fullmatch(value):
            raise ConfigError(
                f"Triton's python backend hangs on the name {value!r}: it has a character that a shell reads.",
                hint="Name models and folders with letters, digits and ./_+@%=:,~- only; a link to a folder will do.",
            )


def _apptainer() -> str | None:
    return shutil.which("apptainer") or shutil.which("singularity")


def _folders_in(folder: Path) -> frozenset[str]:
    return frozenset(entry.name for entry in folder.iterdir() if entry.is_dir())


def _without_foreign(env: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in env.items() if key not in FOREIGN}


def _without_own_python(path: str) -> str:
    """Return PATH without this virtual environment: Triton's python backend takes the first ``python3`` there."""
    if sys.prefix == sys.base_prefix:
        return path
    own = str(Path(sys.prefix, "bin"))
    return os.pathsep.join(folder for folder in path.split(os.pathsep) if folder.rstrip("/") != own)


def _joined(first: Path, path: str) -> str:
    return f"{first}{os.pathsep}{path}"
