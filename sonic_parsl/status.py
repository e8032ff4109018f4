"""What a gRPC status says of an inference request, and whether another server may be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import grpc.aio

from sonic_parsl.errors import DeadlineError, InferenceError, ModelFailedError, ModelNotFoundError, RejectedError

Retry = Literal["elsewhere", "again", "once", "never"]


@dataclass(frozen=True)
class Rule:
    """What a status says of a request.

    Attributes
    ----------
    retry
        ``elsewhere``: another server may well answer; ``again``: so it is, or the request itself is what
        breaks servers, so that it is asked a few times; ``once``: the latter is likely, so that a single
        other one is asked; ``never``: every server would say the same.
    error
        What is raised in the end.
    says, hint
        The middle of the sentence, and what to do.
    """

    retry: Retry
    error: type[InferenceError]
    says: str
    hint: str = ""


_UPDATE = "Check the model's inputs against its configuration."
_MODEL = "Try these rows with the model alone: its own code failed on them, or the process it runs in did."
_ACCESS = "Check the credentials that this server wants."

STATUS: dict[str, Rule] = {
    "UNAVAILABLE": Rule("elsewhere", InferenceError, "cannot be reached or takes no request now"),
    "DEADLINE_EXCEEDED": Rule("elsewhere", DeadlineError, "did not answer in time"),
    "CANCELLED": Rule("elsewhere", InferenceError, "cancelled the request"),
    "RESOURCE_EXHAUSTED": Rule("elsewhere", InferenceError, "has no room for the request"),
    "ABORTED": Rule("elsewhere", InferenceError, "gave the request up"),
    # A Triton that drains answers so while its port is still open; so does one where the model was unloaded.
    "NOT_FOUND": Rule("elsewhere", ModelNotFoundError, "does not have the model"),
    # A dead python stub, or a model that fails on this very input: one other server decides which it is.
    "INTERNAL": Rule("once", ModelFailedError, "failed", _MODEL),
    "UNKNOWN": Rule("once", ModelFailedError, "failed in an unknown way", _MODEL),
    "DATA_LOSS": Rule("once", ModelFailedError, "lost data", _MODEL),
    "INVALID_ARGUMENT": Rule("never", RejectedError, "refuses the request", _UPDATE),
    "OUT_OF_RANGE": Rule("never", RejectedError, "refuses the request", _UPDATE),
    "FAILED_PRECONDITION": Rule("never", RejectedError, "refuses the request", _UPDATE),
    "ALREADY_EXISTS": Rule("never", RejectedError, "refuses the request", _UPDATE),
    "UNIMPLEMENTED": Rule("never", RejectedError, "does not offer this", "Is it a KServe v2 server?"),
    "UNAUTHENTICATED": Rule("never", RejectedError, "does not let this process in", _ACCESS),
    "PERMISSION_DENIED": Rule("never", RejectedError, "does not let this process in", _ACCESS),
}
RESTARTING = ("is not healthy",)
"""What Triton says of a python model's process that was killed or has crashed. Until 24.05 it starts the process
again; since then it says so to each request, and the server's agent ends it."""
ASKED = {"again": 8, "once": 1}
"""How often a request that may itself be what breaks servers is asked after the first time."""
LEAVING = ("has no available versions", "is not at ready state", "Server is stopping")
"""What Triton says, with one status or another, when it goes away."""


@dataclass(frozen=True)
class Fault:
    """A failed attempt: the error to raise, whether another server may be asked, and the gRPC status."""

    error: InferenceError
    retry: Retry
    status: str


def translate(error: grpc.aio.AioRpcError, **context: object) -> Fault:
    """Return what a gRPC error means; `context` goes into the message."""
    details = (error.details() or "no details").strip().rstrip(".")
    rule = STATUS.get(error.code().name, STATUS["UNKNOWN"])
    if any(text in details for text in LEAVING):
        rule = STATUS["NOT_FOUND"]
    retry = "again" if any(text in details for text in RESTARTING) else rule.retry
    text = f"The server {rule.says}: {details}."
    return Fault(rule.error(text, hint=rule.hint, **context), retry, error.code().name)
