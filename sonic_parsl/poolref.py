"""``PoolRef``: how a process finds the pool, and what lets it in."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sonic_parsl.credentials import Credentials, Peer, block_name, registry_name
from sonic_parsl.errors import PoolError, PoolNotFoundError
from sonic_parsl.protocol import ServerInfo, decode, encode

POOL_ENV = "SONIC_PARSL_POOL"
"""Environment variable that names the file a :class:`PoolRef` is read from."""
MODELS_ENV = "SONIC_PARSL_MODELS"
"""Environment variable of workers that names the folder of the models that they brought along."""


@dataclass(frozen=True)
class StaticServer:
    """A server that somebody else runs: a facility's Triton, a gateway, any KServe v2 server.

    Attributes
    ----------
    id, group, kind
        Its name in the table, and the group and kind of device the site file gives it.
    address
        ``host:port`` of its gRPC endpoint.
    models
        Which of its models to use.
    secure
        Whether it speaks TLS.
    authority
        Who must have signed its certificate, as PEM; those the system trusts where this is None.
    token
        What it wants to see with each call.
    """

    id: str
    group: str
    kind: str
    address: str
    models: tuple[str, ...]
    secure: bool = True
    authority: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        """Name or address of its machine."""
        return self.address.rpartition(":")[0]

    @property
    def peer(self) -> Peer:
        """How to reach it: with its own authority and token, never with the run's certificate."""
        return Peer(self.address, secure=self.secure, authority=self.authority, token=self.token)


@dataclass(frozen=True)
class LocalModel:
    """A model that a process may compute itself once the pool is lost.

    Attributes
    ----------
    name, folder
        The model, and its folder in a repository that the process has to see.
    artifact_digest
        What is in the folder, as the pool's owner found it.
    """

    name: str
    folder: str
    artifact_digest: str

    @property
    def folder_here(self) -> Path:
        """Its folder as this process should see it: a worker may have brought it along."""
        brought = os.environ.get(MODELS_ENV)
        return Path(brought, self.name) if brought else Path(self.folder)


@dataclass(frozen=True)
class Fallback:
    """What a process may do without servers: compute ONNX models on its own cores.

    Attributes
    ----------
    models
        Those that the pool's groups serve.
    mix_numerics
        Whether one run may count in several ways.
    patient
        Whether the pool's owner starts servers, and says when there is no hope: calls wait for that beyond
        their deadline.
    """

    models: tuple[LocalModel, ...] = ()
    mix_numerics: bool = False
    patient: bool = True


@dataclass(frozen=True)
class PoolRef:
    """How a worker or an agent finds the pool.

    Attributes
    ----------
    run_id
        Which run.
    registries
        Addresses ``host:port`` of the registry.
    credentials
        What this process shows registry and servers; None where the run has no security.
    static
        Servers that are not the run's own, with their secrets.
    fallback
        What this process does once the pool is lost; None where its calls fail then.
    schema
        Version of this record.
    """

    run_id: str
    registries: tuple[str, ...]
    credentials: Credentials | None = field(default=None, repr=False)
    static: tuple[StaticServer, ...] = field(default=(), repr=False)
    fallback: Fallback | None = None
    schema: Literal[1] = 1

    @property
    def registry(self) -> Peer:
        """How to reach the registry."""
        hosts = self.registries
        address = hosts[0] if len(hosts) == 1 else "ipv4:" + ",".join(hosts)
        return Peer.of_run(address, registry_name(self.run_id), self.credentials)

    def server(self, info: ServerInfo) -> Peer:
        """Return how to reach a server of the table."""
        for one in self.static:
            if one.id == info.id:
                return one.peer
        return Peer.of_run(info.address, block_name(self.run_id, info.group, info.block_id), self.credentials)

    def write(self, path: Path) -> None:
        """Write to `path`, readable by its owner only, at once or not at all."""
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(encode(self))
            scratch.replace(path)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise PoolError(
                f"The pool's file {path} cannot be written: {error.strerror}.",
                hint="Make room there, or name another folder: `driver: {run-dir: ...}` in the site file.",
            ) from None

    @classmethod
    def read(cls, path: Path) -> PoolRef:
        """Read what :meth:`write` wrote.

        Raises
        ------
        PoolNotFoundError
            No such file, or it cannot be read.
        """
        try:
            return decode(cls, path.read_bytes())
        except OSError as error:
            raise PoolNotFoundError(
                f"The pool's file {path} cannot be read: {error.strerror}.",
                hint="The pool has ended, or this machine does not see the run directory.",
            ) from None

    @classmethod
    def from_environment(cls) -> PoolRef:
        """Read the file that the environment names.

        Raises
        ------
        PoolNotFoundError
            The environment names none.
        """
        name = os.environ.get(POOL_ENV)
        if not name:
            raise PoolNotFoundError(
                "This process was not told of a pool.",
                hint="Open one with sonic_parsl.load_site(...), use site.coffea_executor(), "
                f"or set {POOL_ENV} to the pool's file.",
            )
        return cls.read(Path(name))
