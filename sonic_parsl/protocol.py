"""Messages of the pool: frozen dataclasses that travel as JSON.

Reading checks types and bounds: who may speak to the registry may still be broken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from sonic_parsl.errors import PoolError

VERSION = version("sonic-parsl")

LEASE_S = 15.0
"""How long a server stays in the table without a word from its agent."""

T = TypeVar("T")

MAX_REASON, MAX_LINES = 4_096, 16_384
"""Characters of a reason, and of the last lines that a Triton wrote."""

# Bounds far above what a real server has, so that no message makes the registry large or slow.
Name = Annotated[str, Field(max_length=256)]
Address = Annotated[str, Field(max_length=256, pattern=r"^([A-Za-z0-9._-]+:[0-9]{1,5})?$")]
BlockId = Annotated[str, Field(max_length=20, pattern=r"^[0-9]*$")]
Reason = Annotated[str, Field(max_length=MAX_REASON)]
Lines = Annotated[str, Field(max_length=MAX_LINES)]
Count = Annotated[int, Field(ge=0, le=2**63)]
Total = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LeaseLength = Annotated[float, Field(gt=0, le=3_600)]
Shape = Annotated[tuple[int, ...], Field(max_length=32)]
MAX_TENSORS = MAX_MODELS = 1_000
MAX_PROBLEMS = 5
"""So many are told of a message that cannot be read."""


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

    name: Name
    datatype: Name
    shape: Shape


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
        SHA-256 of what the model was made from; the same on all kinds of device. Empty where nobody
        can say: then the model is unverified.
    artifact_digest
        SHA-256 of configuration and files as served.
    numeric_kind
        How the model counts, for example ``fp32``.
    """

    name: Name
    version: Name
    max_batch_size: Count
    inputs: Annotated[tuple[TensorSpec, ...], Field(max_length=MAX_TENSORS)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(max_length=MAX_TENSORS)]
    tags: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    source_digest: Name = ""
    artifact_digest: Name = ""
    numeric_kind: Name = "fp32"


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

    rows: Count = 0
    requests: Count = 0
    failures: Count = 0
    queue_ms: Total = 0.0
    compute_ms: Total = 0.0


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
    devices
        Which of the node's devices the batch system gave it, for example ``0,1``; empty where it does not say.
    lease_s
        How long it stays in the table without a further word, in seconds.
    """

    id: Name
    group: Name
    kind: Name
    fidelity: Name
    node: Name
    address: Address
    block_id: BlockId
    job_id: Name
    models: Annotated[tuple[ServedModel, ...], Field(max_length=MAX_MODELS)]
    ends_at: Annotated[float, Field(allow_inf_nan=False)] | None = None
    lease_s: LeaseLength = LEASE_S
    devices: Name = ""


ServerState = Literal["starting", "ready", "draining"]


@dataclass(frozen=True)
class ServerEntry:
    """A line of the server table."""

    info: ServerInfo
    state: ServerState
    load: ServerLoad = field(default_factory=ServerLoad)


BlockState = Literal["queued", "starting", "lost"]


@dataclass(frozen=True)
class BlockEntry:
    """A block of a server group that has no server in the table, as the pool's owner knows it.

    Attributes
    ----------
    group, block_id, job_id
        Server group, Parsl's block and the batch system's job.
    state
        ``queued``: its job waits; ``starting``: its job runs and no server has joined; ``lost``: it failed.
    reason
        Why it was lost, in a line.
    """

    group: Name
    block_id: BlockId
    job_id: Name
    state: BlockState
    reason: Reason = ""


@dataclass(frozen=True)
class ServerTable:
    """Who serves now.

    Attributes
    ----------
    generation
        Grows by one whenever a server comes, goes or changes its state, or the owner tells of its blocks.
    servers
        The servers whose lease is valid.
    lost
        Why the pool is lost, once it is.
    blocks
        Blocks without a server here: those that are on their way, and those lost last.
    """

    run_id: str
    generation: int
    servers: tuple[ServerEntry, ...] = ()
    lost: str | None = None
    blocks: tuple[BlockEntry, ...] = ()

    @property
    def ready(self) -> tuple[ServerEntry, ...]:
        """Servers that take requests."""
        return tuple(entry for entry in self.servers if entry.state == "ready")


# Agent and client to registry ------------------------------------------------


@dataclass(frozen=True)
class Join:
    """Agent: this server is being started (no models yet) or is ready."""

    version: Name
    info: ServerInfo
    state: ServerState


@dataclass(frozen=True)
class Renew:
    """Agent: Triton answered just now; this is what it has done."""

    server_id: Name
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

    server_id: Name
    block_id: BlockId
    group: Name
    failed: bool
    reason: Reason
    stderr: Lines = ""
    load: ServerLoad = field(default_factory=ServerLoad)


@dataclass(frozen=True)
class Drain:
    """Agent: give this server no new requests."""

    server_id: Name
    reason: Reason


@dataclass(frozen=True)
class Follow:
    """Client: send me the table now and whenever it changes."""

    version: Name


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
class Blocks:
    """Owner: these are the blocks of a group that have no server in the table."""

    group: str
    entries: tuple[BlockEntry, ...]


@dataclass(frozen=True)
class Lose:
    """Owner: the pool is lost, tell everyone."""

    reason: str


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
            for item in error.errors(include_url=False, include_input=False, include_context=False)[:MAX_PROBLEMS]
        )
        raise PoolError(f"A {cls.__name__} message could not be read: {problems}.") from None
    return message
