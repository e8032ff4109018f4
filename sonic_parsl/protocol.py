"""Messages of the pool, and ``PoolRef``, by which a process finds it.

Everything here is a frozen dataclass that travels as JSON; reading checks types.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from sonic_parsl.errors import PoolError, PoolNotFoundError

VERSION = version("sonic-parsl")
POOL_ENV = "SONIC_PARSL_POOL"
"""Environment variable that names the file a :class:`PoolRef` is read from."""

LEASE_S = 15.0
"""How long a server stays in the table without a word from its agent."""

T = TypeVar("T")


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output.

    Attributes
    ----------
    name
        Tensor name.
    datatype
        KServe v2 datatype: ``FP32``, ``INT64``, ``BOOL`` ...
    shape
        Shape of one row, without the batch dimension; -1 is any size.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ServedModel:
    """One version of a model, as a server offers it.

    Attributes
    ----------
    name, version
        As in Triton's model repository.
    max_batch_size
        Most rows of one request; 0 means that the model has no batch dimension.
    inputs, outputs
        Tensors, in the order of the model's configuration.
    tags
        Labels of this version, to choose it by.
    source_digest
        SHA-256 of what the model was made from; the same on all kinds of device.
    artifact_digest
        SHA-256 of configuration and files as served.
    numeric_kind
        How the model counts, for example ``fp32``.
    """

    name: str
    version: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tags: tuple[str, ...] = ()
    source_digest: str = ""
    artifact_digest: str = ""
    numeric_kind: str = "fp32"


@dataclass(frozen=True)
class ServerLoad:
    """What a server has done since its start, summed over its models.

    Attributes
    ----------
    rows, requests, failures
        Rows and requests answered, requests refused or failed.
    queue_ms, compute_ms
        Time that requests spent waiting and being computed, in ms, in total.
    """

    rows: int = 0
    requests: int = 0
    failures: int = 0
    queue_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True)
class ServerInfo:
    """A server of the pool: what it is, where it runs and what it serves.

    Attributes
    ----------
    id
        Unique in the run: ``<group>-<block>-<random>``.
    group, kind, fidelity
        Server group of the site file; device kind; ``hardware`` or ``emulated``.
    node, address
        Host name; ``host:port`` of its gRPC endpoint.
    block_id, job_id
        Parsl's block and the batch system's job.
    models
        What it serves.
    ends_at
        When its walltime ends, in seconds since the epoch; None where it does not.
    """

    id: str
    group: str
    kind: str
    fidelity: str
    node: str
    address: str
    block_id: str
    job_id: str
    models: tuple[ServedModel, ...]
    ends_at: float | None = None


ServerState = Literal["starting", "ready", "draining"]


@dataclass(frozen=True)
class ServerEntry:
    """A line of the server table."""

    info: ServerInfo
    state: ServerState
    load: ServerLoad = field(default_factory=ServerLoad)


@dataclass(frozen=True)
class ServerTable:
    """Who serves now.

    Attributes
    ----------
    generation
        Grows by one whenever a server comes, goes or changes its state.
    servers
        The servers whose lease is valid.
    lost
        Why the pool is lost, once it is.
    """

    run_id: str
    generation: int
    servers: tuple[ServerEntry, ...] = ()
    lost: str | None = None

    @property
    def ready(self) -> tuple[ServerEntry, ...]:
        """Servers that take requests."""
        return tuple(entry for entry in self.servers if entry.state == "ready")


# Agent and client to registry ------------------------------------------------


@dataclass(frozen=True)
class Join:
    """Agent: this server is being started (no models yet) or is ready.

    Attributes
    ----------
    lease_s
        How long it stays in the table without a further word, in seconds.
    """

    version: str
    info: ServerInfo
    state: ServerState
    lease_s: float = LEASE_S


@dataclass(frozen=True)
class Renew:
    """Agent: Triton answered just now; this is what it has done."""

    server_id: str
    load: ServerLoad


@dataclass(frozen=True)
class Leave:
    """Agent: this server ends.

    Attributes
    ----------
    failed
        True where it was not asked to.
    reason
        One sentence.
    stderr
        The last lines Triton wrote, where it failed.
    """

    server_id: str
    block_id: str
    group: str
    failed: bool
    reason: str
    stderr: str = ""
    load: ServerLoad = field(default_factory=ServerLoad)


@dataclass(frozen=True)
class Drain:
    """Agent: give this server no new requests."""

    server_id: str
    reason: str


@dataclass(frozen=True)
class Follow:
    """Client: send me the table now and whenever it changes."""

    version: str


@dataclass(frozen=True)
class Ack:
    """Registry's answer to an agent.

    Attributes
    ----------
    known
        False where the registry does not know the server (it was restarted, or the lease ended): join again.
    drain
        True where the pool wants the server to end.
    """

    known: bool = True
    drain: bool = False


# Registry to pool owner, over the pipe between them ------------------------


@dataclass(frozen=True)
class Listening:
    """Registry: it answers at this address."""

    address: str


@dataclass(frozen=True)
class Departure:
    """A server that is gone, and why.

    Attributes
    ----------
    failed
        True where nobody had asked it to end.
    entry
        Its last line in the table; None where it never joined.
    """

    server_id: str
    block_id: str
    group: str
    failed: bool
    reason: str
    stderr: str = ""
    entry: ServerEntry | None = None


@dataclass(frozen=True)
class Lose:
    """Owner: the pool is lost, tell everyone."""

    reason: str


# How a process finds the pool ---------------------------------------------


@dataclass(frozen=True)
class Credentials:
    """What lets a process talk to the pool. Never printed."""

    token: str = field(repr=False)

    @classmethod
    def new(cls) -> Credentials:
        """Make credentials for a new run."""
        return cls(token=secrets.token_urlsafe(32))


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
        Secret: they are in no repr.
    schema
        Version of this record.
    """

    run_id: str
    registries: tuple[str, ...]
    credentials: Credentials = field(repr=False)
    schema: Literal[1] = 1

    def write(self, path: Path) -> None:
        """Write to `path`, readable by its owner only, at once or not at all."""
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode(self))
        scratch.replace(path)

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


@dataclass(frozen=True)
class RegistrySpec:
    """What a registry is started with, over its standard input."""

    run_id: str
    address: str
    credentials: Credentials
    port_range: tuple[int, int] | None = None


# JSON ---------------------------------------------------------------------


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def encode(message: Any) -> bytes:
    """Return a message as JSON."""
    kind: Any = type(message)
    return _adapter(kind).dump_json(message)


def decode(cls: type[T], data: bytes) -> T:
    """Read a message of class `cls` from JSON.

    Raises
    ------
    PoolError
        It is not one. The text is not quoted: it may hold a secret.
    """
    kind: Any = cls
    try:
        message: T = _adapter(kind).validate_json(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'message'}: {item['type']}"
            for item in error.errors(include_url=False, include_input=False, include_context=False)
        )
        raise PoolError(f"A {cls.__name__} message could not be read: {problems}.") from None
    return message
