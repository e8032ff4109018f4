"""What a job of the doctor's probe does on its node: ``python -m sonic_parsl.server.probe_job``.

It calls the driver, opens a port as a server would, and visits the ports of other jobs where it is asked to.
"""

from __future__ import annotations

import base64
import socket
import sys
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sonic_parsl.errors import ConfigError
from sonic_parsl.ports import PortRange, address_towards, free_port, ipv4_of
from sonic_parsl.protocol import VERSION, decode, encode
from sonic_parsl.server.runtimes import runtime

CONNECT_S = 10.0
LIFE_S = 180.0
"""A job whose driver says nothing for so long ends."""

T = TypeVar("T")


@dataclass(frozen=True)
class Needs:
    """What a server needs on its node.

    Attributes
    ----------
    runtime, image, binary, gpu
        As :func:`sonic_parsl.server.runtimes.runtime` has them.
    repository
        Folder of its models; None where they travel with the job.
    """

    runtime: str
    image: str | None = None
    binary: str | None = None
    gpu: bool = False
    repository: str | None = None

    def lacking(self) -> tuple[str, ...]:
        """Return what this node lacks, a sentence each."""
        try:
            found = runtime(self.runtime, image=self.image, binary=self.binary, gpu=self.gpu).problems()
        except ConfigError as error:
            found = [str(error)]
        if self.repository is not None and not Path(self.repository).is_dir():
            found.append(f"The model repository {self.repository} is not there. Put it on a disk that all nodes see.")
        return tuple(found)


@dataclass(frozen=True)
class Errand:
    """What the job carries inside its script.

    Attributes
    ----------
    driver
        ``host:port`` to call.
    token
        By which the driver knows its own jobs.
    job
        Which of its jobs this is.
    address, port_range
        Where a server of this job would listen.
    needs
        What it would need; None for workers.
    """

    driver: str
    token: str = field(repr=False)
    job: str = ""
    address: str | None = None
    port_range: PortRange | None = None
    needs: Needs | None = None

    def pack(self) -> str:
        """Return it as one word that a shell leaves as it is."""
        return base64.b64encode(encode(self)).decode()


@dataclass(frozen=True)
class Hello:
    """Job: I am here.

    Attributes
    ----------
    id
        What this job's port says to visitors.
    address
        ``host:port`` of it.
    lacks
        What the node lacks for a server.
    """

    token: str = field(repr=False)
    job: str
    id: str
    node: str
    version: str
    python: str
    address: str
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Visit:
    """Driver: try these ports, by the ids that they should say."""

    addresses: dict[str, str]


@dataclass(frozen=True)
class Visited:
    """Job: these ports could not be reached, and why, by the ids that they should have said."""

    problems: dict[str, str]


def main() -> None:
    """Do the errand that comes by standard input."""
    errand = decode(Errand, base64.b64decode(sys.stdin.readline()))
    node = socket.gethostname()
    try:
        driver = socket.create_connection(_split(errand.driver), CONNECT_S)
    except OSError as error:
        sys.exit(f"{node} cannot reach the driver at {errand.driver}: {error}")
    try:
        host = ipv4_of(errand.address) if errand.address else address_towards(errand.driver)
        port = free_port(host, errand.port_range)
    except ConfigError as error:
        sys.exit(f"{node}: {error.message}")
    with (
        driver,
        socket.create_server((host, port)) as door,
        driver.makefile("rb") as lines,
    ):
        own = Hello(
            token=errand.token,
            job=errand.job,
            id=uuid.uuid4().hex,
            node=node,
            version=VERSION,
            python=".".join(map(str, sys.version_info[:2])),
            address=f"{host}:{port}",
            lacks=errand.needs.lacking() if errand.needs else (),
        )
        threading.Thread(target=_say_to_visitors, args=(door, own.id), daemon=True).start()
        driver.settimeout(LIFE_S)
        driver.sendall(encode(own) + b"\n")
        for line in lines:
            asked = decode(Visit, line)
            problems = {other: _visit(other, address) for other, address in asked.addresses.items()}
            driver.sendall(encode(Visited({other: why for other, why in problems.items() if why})) + b"\n")


def _say_to_visitors(door: socket.socket, own_id: str) -> None:
    while True:
        try:
            visitor, _ = door.accept()
        except OSError:  # it was closed: the errand is done
            return
        with visitor:
            visitor.sendall(own_id.encode())


def _visit(other: str, address: str) -> str:
    """Return why a port cannot be reached; empty where it can."""
    try:
        with socket.create_connection(_split(address), CONNECT_S) as door:
            said = door.makefile("rb").read(len(other))
    except OSError as error:
        return str(error)
    return "" if said == other.encode() else "somebody else listens there"


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    main()
