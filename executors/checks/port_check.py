"""Are there ports enough for a run? Asked before Parsl starts, which does not say what it could not bind to."""

from __future__ import annotations

import socket
from itertools import islice

from sonic_parsl.errors import ConfigError
from sonic_parsl.ports import free_port
from sonic_parsl.site import SiteFile

PARSL_PORTS = 4
"""Tasks, results and commands of its interchange, and one for its workers."""
LOOPBACK = "127.0.0.1"


def check_ports(settings: SiteFile) -> None:
    """Check that the driver's address is this machine's, and that its range has the ports of a run.

    Raises
    ------
    ConfigError
        It is not, or too few are free.
    """
    address, ports = settings.driver.ipv4, settings.driver.port_range
    free_port(address)
    if ports is None:
        return
    servers = sum(
        group.count.min * (group.nodes or 1) for group in settings.servers.values() if group.provider == "local"
    )
    needed = PARSL_PORTS + 1 + servers
    # Parsl leaves out the last port of a range.
    free = list(islice((port for port in range(ports[0], ports[1]) if _is_free(address, port)), needed))
    if len(free) < needed:
        raise ConfigError(
            f"Of the ports from {ports[0]} to {ports[1]} only {len(free)} are free at {address}, and a run needs "
            f"{needed} here: {PARSL_PORTS} for Parsl, one for the registry, {servers} for servers.",
            hint="Widen port-range in the site file, or end what uses the ports; Parsl cannot use the last one.",
        )


def _is_free(address: str, port: int) -> bool:
    return all(_binds(host, port) for host in {address, LOOPBACK})


def _binds(host: str, port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return False
    return True
