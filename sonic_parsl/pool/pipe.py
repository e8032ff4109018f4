"""Messages on the pipe between a pool's owner and its registry: one line each, ``ClassName {json}``."""

from __future__ import annotations

from typing import Any

from sonic_parsl.errors import PoolError
from sonic_parsl.protocol import decode, encode


def to_line(message: Any) -> bytes:
    """Return a message as a line."""
    return type(message).__name__.encode() + b" " + encode(message) + b"\n"


def from_line(line: bytes, *classes: type[Any]) -> Any:
    """Read a message of one of `classes`.

    Raises
    ------
    PoolError
        It is none of them.
    """
    name, _, data = line.partition(b" ")
    for cls in classes:
        if cls.__name__.encode() == name:
            return decode(cls, data)
    raise PoolError(f"Unexpected message on the registry's pipe: {name[:40]!r}.")
