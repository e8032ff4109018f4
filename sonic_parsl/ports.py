"""TCP ports on this node: free ones, from a range where the site has one."""

from __future__ import annotations

import ipaddress
import random
import re
import socket
from collections.abc import Iterator

import psutil

from sonic_parsl.errors import ConfigError

PortRange = tuple[int, int]
RANGE = re.compile(r"(\d+) *- *(\d+)")


def as_range(value: object) -> object:
    """Return ``first-last``, as firewalls write it, as the pair that it is; leave a pair of anything as it is."""
    if isinstance(value, str) and (found := RANGE.fullmatch(value.strip())):
        return found.groups()
    if isinstance(value, list | tuple) and len(value) == 2:
        return value
    msg = f"{value!r} is not [first, last]"
    raise ValueError(msg)


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
        Every port of the range is taken, or `host` is not this node.
    """
    reason: str | None = None
    for address in listen_addresses(host, port_range):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, int(address.rpartition(":")[2])))
            except OSError as error:
                reason = error.strerror
                continue
            return int(trial.getsockname()[1])
    where = "no port" if port_range is None else f"no port from {port_range[0]} to {port_range[1]}"
    raise ConfigError(
        f"There is {where} to listen on at {host}: {reason}.",
        hint="Widen port-range in the site file, or correct the address.",
    )


def ipv4_of(address: str) -> str:
    """Return the IPv4 address of this node that `address` means: one itself, or the name of an interface.

    Raises
    ------
    ConfigError
        It is neither, or the interface has none.
    """
    if address not in (interfaces := psutil.net_if_addrs()):
        try:
            return str(ipaddress.IPv4Address(address))
        except ValueError:
            raise ConfigError(
                f"'{address}' is neither an IPv4 address nor an interface of this machine, {socket.gethostname()}.",
                hint=f"Give its IPv4 address, or one of its interfaces: {', '.join(sorted(interfaces))}.",
            ) from None
    found = [entry.address for entry in interfaces[address] if entry.family is socket.AF_INET]
    if not found:
        raise ConfigError(
            f"The interface {address} of {socket.gethostname()} has no IPv4 address.",
            hint=f"Interfaces with one are {', '.join(sorted(filter(_has_ipv4, interfaces)))}.",
        )
    return found[0]


def _has_ipv4(interface: str) -> bool:
    return any(entry.family is socket.AF_INET for entry in psutil.net_if_addrs()[interface])


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_towards(peer: str) -> str:
    """Return the IPv4 address of this node by which it reaches ``host:port`` `peer`; nothing is sent."""
    host, _, port = peer.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        trial.connect((host, int(port)))
        return str(trial.getsockname()[0])
