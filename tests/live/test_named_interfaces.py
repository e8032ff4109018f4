"""A machine with several interfaces: driver and servers listen on those that the site file names, and on no other."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import sonic_parsl as sonic
from sonic_parsl.workflows.generate import generate
from tests.faults.runs import EVENTS, Analysis, wait_whole, write_site
from tests.leaks import POOL_WORDS, assert_nothing_is_left, our_processes, told
from tests.schedulers.apt import SYSTEM_PATH, provide

DRIVERS, SERVERS, LOOPBACK = "203.0.113.77", "203.0.113.78", "127.0.0.1"
"""The loopback address is for those of Parsl's ports that answer this machine only."""


@dataclass(frozen=True)
class Wire:
    """Two interfaces of this machine, each with an address of its own."""

    driver: str
    servers: str


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, env={"PATH": SYSTEM_PATH}, capture_output=True)


@pytest.fixture
def wire() -> Iterator[Wire]:
    provide("Interfaces with addresses of their own", ["ip"], ["iproute2"])
    name = f"w{os.getpid() % 10**6}"
    made = Wire(f"{name}d", f"{name}s")
    ip("link", "add", made.driver, "type", "veth", "peer", "name", made.servers)
    try:
        for interface, address in ((made.driver, DRIVERS), (made.servers, SERVERS)):
            ip("address", "add", f"{address}/32", "dev", interface)
            ip("link", "set", interface, "up")
        yield made
    finally:
        ip("link", "delete", made.driver)  # its peer goes with it


def test_driver_and_servers_each_listen_on_the_interface_that_is_named_and_nowhere_else(
    wire: Wire, tmp_path: Path
) -> None:
    analysis = Analysis(generate(tmp_path / "events.root", events=EVENTS))
    path = write_site(tmp_path, more=f"address: {wire.servers}", driver=f"address: {wire.driver}")
    with sonic.load_site(path) as site:
        wait_whole(site)
        analysis.check(analysis.run(site.coffea_executor(status=False)))
        assert all(line.rows for line in site.report().servers)
        assert listening() == {DRIVERS: 2, SERVERS: 2, LOOPBACK: 3}, "registry and interchange, servers, Parsl"
        (registry,) = site.pool.ref.registries
        assert registry.startswith(f"{DRIVERS}:")
        assert {entry.info.address.rpartition(":")[0] for entry in site.pool.table.ready} == {SERVERS}
    assert_nothing_is_left()


def listening() -> Counter[str]:
    """Return at how many ports of each address this run listens."""
    processes = {*our_processes(*POOL_WORDS), psutil.Process(), *psutil.Process().children(recursive=True)}
    found = {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)  # IPv4, as IPv6 writes it
        for connections in told(processes, lambda process: process.net_connections(kind="inet"))
        for connection in connections
        if connection.status == psutil.CONN_LISTEN
    }
    return Counter(host for host, _ in found)
