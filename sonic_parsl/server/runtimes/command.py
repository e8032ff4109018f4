"""What a Triton is started with, and what every way to run one offers.

Triton serves gRPC only: its HTTP and metrics ports are off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from sonic_parsl.server.runtimes.shared_memory import new_shm_prefix

KEY_FILES = {"server-cert": "certificate.pem", "server-key": "key.pem", "root-cert": "authority.pem"}
"""Triton's words for what it shows and checks, and the files these are in."""

FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "VIRTUAL_ENV", "LD_PRELOAD")
"""Variables that would lead the server's Python into the environment of the analysis, and to its numpy."""


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
    keys
        Folder with the files of :data:`KEY_FILES`: then it speaks TLS, to who has a certificate of the
        same authority only. It reads them while it starts.
    """

    repository: Path
    models: tuple[str, ...]
    address: str
    port: int
    exit_timeout_s: int = 10
    shm_prefix: str = field(default_factory=new_shm_prefix)
    keys: Path | None = None

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


def triton_flags(options: TritonOptions) -> tuple[str, ...]:
    """Return the arguments of ``tritonserver``; the folders in `options` are as it sees them."""
    return (
        f"--model-repository={options.repository.absolute()}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in options.models),
        f"--grpc-address={options.address}",
        f"--grpc-port={options.port}",
        "--allow-http=false",
        "--allow-metrics=false",
        f"--exit-timeout-secs={options.exit_timeout_s}",
        f"--backend-config=python,shm-region-prefix-name={options.shm_prefix}",
        *(() if options.keys is None else _tls_flags(options.keys)),
    )


def _tls_flags(keys: Path) -> tuple[str, ...]:
    return (
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        *(f"--grpc-{part}={keys / name}" for part, name in KEY_FILES.items()),
    )


def folders_in(folder: Path) -> frozenset[str]:
    """Return the names of the folders in a backend directory: the backends."""
    return frozenset(entry.name for entry in folder.iterdir() if entry.is_dir())


def without_foreign(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what leads to the Python of the analysis."""
    return {key: value for key, value in env.items() if key not in FOREIGN}
