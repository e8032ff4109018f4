"""What an agent is told to serve, and how: written by the pool's owner, read on the server's node."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

from sonic_parsl.devices import Fidelity
from sonic_parsl.errors import ConfigError, PoolError
from sonic_parsl.poolref import PoolRef
from sonic_parsl.ports import PortRange
from sonic_parsl.protocol import LEASE_S, decode, encode


@dataclass(frozen=True)
class ServerSpec:
    """A server of a group.

    Attributes
    ----------
    group, kind, fidelity
        Server group, device kind, and whether it is the device itself.
    repository
        Triton model repository.
    models
        Which of its models to serve.
    digests
        Artifact digest of each, as the pool's owner found it: a repository that has changed is not served.
    runtime, image, binary
        How Triton is started; see :mod:`sonic_parsl.server.runtimes`.
    gpu
        True where Triton needs the node's GPUs.
    numbered_by
        Environment variable in which the batch system says which devices the job was given; empty for none.
    address, port_range
        Where Triton listens; by default, on the node's address by which it reaches the registry.
    lease_s
        The registry forgets the server when it hears nothing for so many seconds; a server that does not
        reach the registry for so long ends.
    start_timeout_s
        The models must answer within so many seconds.
    drain_s
        What is in flight at the end gets so many seconds.
    walltime_s
        The job's length, where the batch system does not say on the node.
    drain_before_s
        Drain this long before the walltime ends.
    """

    group: str
    repository: Path
    models: tuple[str, ...]
    kind: str = "cpu"
    fidelity: Fidelity = "hardware"
    runtime: str = "wheel"
    image: str | None = None
    binary: str | None = None
    gpu: bool = False
    numbered_by: str = ""
    address: str | None = None
    port_range: PortRange | None = None
    lease_s: float = LEASE_S
    start_timeout_s: float = 300.0
    drain_s: float = 20.0
    walltime_s: float | None = None
    drain_before_s: float = 120.0
    digests: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write to `path` as JSON."""
        path.write_bytes(encode(self))

    @classmethod
    def read(cls, path: Path) -> ServerSpec:
        """Read what :meth:`write` wrote.

        Raises
        ------
        ConfigError
            The file cannot be read.
        """
        try:
            return decode(cls, path.read_bytes())
        except OSError as error:
            raise ConfigError(f"The server's description {path} cannot be read: {error.strerror}.") from None


@dataclass(frozen=True)
class Luggage:
    """What a job carries with it where its node does not see the run directory.

    It travels inside the job's script, which batch systems show to nobody but the job's owner.
    """

    spec: ServerSpec
    ref: PoolRef = field(repr=False)

    def pack(self) -> str:
        """Return it as one word that a shell leaves as it is."""
        return base64.b64encode(encode(self)).decode()

    @classmethod
    def unpack(cls, text: str) -> Luggage:
        """Read what :meth:`pack` returned.

        Raises
        ------
        PoolError
            It is damaged.
        """
        try:
            data = base64.b64decode(text.strip(), validate=True)
        except ValueError:
            raise PoolError("What the job should carry is damaged: it is not what the driver had packed.") from None
        return decode(cls, data)
