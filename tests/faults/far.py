"""A place that this machine reaches by one wire, which can be cut: a network namespace. For root."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from parsl.launchers.base import Launcher
from typing_extensions import override


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class InNamespace(Launcher):  # type: ignore[misc]
    """Starts a job in a network namespace."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    @override
    def __call__(self, command: str, *_: object) -> str:
        return f"exec ip netns exec {self.name} bash -c {shlex.quote(command)}"


@dataclass(frozen=True)
class Far:
    """A place that this machine reaches by one wire.

    Attributes
    ----------
    namespace
        Its name.
    interface
        This machine's end of the wire.
    here, address
        This end's address, and the far end's.
    """

    namespace: str
    interface: str
    here: str
    address: str

    def cut(self) -> None:
        """Cut the wire: nothing comes through, and nobody is told."""
        ip("link", "set", self.interface, "down")

    def mend(self) -> None:
        """Let it through again."""
        ip("link", "set", self.interface, "up")

    @contextmanager
    def no_way_to(self, port: int) -> Iterator[Callable[[], None]]:
        """Yield what closes the way to a TCP port of the far end, silently; it is open again at the end."""
        way = ("to", self.address, "ipproto", "tcp", "dport", str(port), "pref", "10", "blackhole")
        closed: list[bool] = []

        def close() -> None:
            ip("rule", "add", *way)
            closed.append(True)

        try:
            yield close
        finally:
            if closed:
                ip("rule", "delete", *way)


@contextmanager
def far_place() -> Iterator[Far]:
    """Make one, by the program ``ip``, as root; it is gone at the end."""
    name, wire = f"far-{os.getpid()}", f"v{os.getpid() % 10**6}"
    first = 4 * (os.getpid() % 64)  # another process of tests has a place of its own
    here, there = f"198.51.100.{first + 1}", f"198.51.100.{first + 2}"
    ip("netns", "add", name)
    try:
        ip("link", "add", f"{wire}h", "type", "veth", "peer", "name", f"{wire}f", "netns", name)
        ip("address", "add", f"{here}/30", "dev", f"{wire}h")
        ip("link", "set", f"{wire}h", "up")
        ip("-n", name, "address", "add", f"{there}/30", "dev", f"{wire}f")
        for interface in ("lo", f"{wire}f"):
            ip("-n", name, "link", "set", interface, "up")
        yield Far(name, f"{wire}h", here, there)
    finally:
        ip("netns", "delete", name)  # the wire goes with it
