"""Without certificates, a run stays on its own machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from parsl.providers import LocalProvider

import sonic_parsl as sonic
from sonic_parsl.errors import ConfigError
from sonic_parsl.executors.servers.server_executor import ServerExecutor
from sonic_parsl.pool.pool import ServerPool
from tests.leaks import PARSL_WORDS, our_processes
from tests.server.agents import MODELS

ELSEWHERE = ["0.0.0.0", "192.0.2.7", "::", "node7", "node7.example.org"]
HERE = ["127.0.0.1", "127.0.0.2", "localhost"]
REFUSED = "A pool without security cannot listen at {}: other machines reach that address"


def servers(pool: ServerPool, address: str) -> ServerExecutor:
    return ServerExecutor("cpu", pool=pool, provider=LocalProvider(), models=MODELS, address=address)


@pytest.mark.parametrize("address", ELSEWHERE)
def test_neither_registry_nor_servers_listen_where_other_machines_reach_them(address: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED.format(address)):
        ServerPool(address=address, security="none")
    with pytest.raises(ConfigError, match=REFUSED.format(address)):
        servers(ServerPool(security="none"), address)


@pytest.mark.parametrize("address", HERE)
def test_on_this_machine_they_may(address: str) -> None:
    pool = ServerPool(address=address, security="none")
    assert servers(pool, address).address == address


@pytest.mark.parametrize("address", ELSEWHERE)
def test_with_certificates_they_may_listen_anywhere(address: str) -> None:
    pool = ServerPool(address=address)
    assert servers(pool, address).address == address


@pytest.mark.parametrize(
    "text",
    [
        "{security: none, driver: {address: 192.0.2.7}, servers: {a: {}}}",
        "{security: none, servers: {a: {address: 192.0.2.7}}}",
    ],
    ids=["driver", "servers"],
)
def test_a_site_file_that_asks_for_it_is_refused_and_nothing_runs(text: str, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(ConfigError, match=REFUSED.format("192.0.2.7")):
        sonic.load_site(tmp_path / "site.yaml")
    assert not our_processes("sonic_parsl.pool", "sonic_parsl.server", *PARSL_WORDS)
