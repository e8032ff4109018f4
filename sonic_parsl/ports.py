"""TCP ports on this node: free ones, from a range where the site has one."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

from sonic_parsl.errors import ConfigError

PortRange = tuple[int, int]


def listen_addresses(host: str, port_range: PortRange | None) -> Iterator[str]:
    """Yield ``host:port`` to try, in random order so that servers that start together rarely meet.

    Port 0 stands for any free port where no range is set.
    """
    if port_range is None:
        yield f"{host}:0"
        return
    first, last = port_range
    for port in random.sample(range(first, last + 1), last - first + 1):
        yield f"{host}:{port}"


def free_port(host: str, port_range: PortRange | None = None) -> int:
    """Return a port on `host` that nobody listens on now.

    Raises
    ------
    ConfigError
        Every port of the range is taken.
    """
    for address in listen_addresses(host, port_range):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, int(address.rpartition(":")[2])))
            except OSError:
                continue
            return int(trial.getsockname()[1])
    raise ConfigError(
        f"Every port from {port_range} on {host} is taken.",
        hint="Widen port-range in the site file.",
    )
