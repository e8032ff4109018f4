"""A port that is given out can be listened on."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.errors import ConfigError
from sonic_parsl.ports import address_towards, free_port, ipv4_of, listen_addresses

HOST = "127.0.0.1"


@pytest.fixture
def taken() -> Iterator[int]:
    """Yield a port that somebody listens on."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener.getsockname()[1]


@given(first=st.integers(1024, 65000), size=st.integers(1, 50))
def test_every_port_of_a_range_is_tried_once(first: int, size: int) -> None:
    ports = [
        int(address.removeprefix("10.0.0.1:")) for address in listen_addresses("10.0.0.1", (first, first + size - 1))
    ]
    assert sorted(ports) == list(range(first, first + size))


def test_without_a_range_the_system_chooses() -> None:
    assert list(listen_addresses(HOST, None)) == ["127.0.0.1:0"]


def test_servers_that_start_together_try_different_ports() -> None:
    firsts = {next(listen_addresses(HOST, (20000, 29999))) for _ in range(20)}
    assert len(firsts) > 10


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port(HOST)
    with socket.create_server((HOST, port)) as listener:
        assert listener.getsockname() == (HOST, port)


def test_a_free_port_is_inside_the_range_and_not_the_one_that_is_taken(taken: int) -> None:
    first, last = max(1024, taken - 20), min(65535, taken + 20)
    assert {free_port(HOST, (first, last)) for _ in range(50)} <= set(range(first, last + 1)) - {taken}


def test_a_range_whose_ports_are_all_taken_is_an_error_that_names_it(taken: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"no port from {taken} to {taken} to listen on at 127\.0\.0\.1: Address alre"
    ):
        free_port(HOST, (taken, taken))


def test_an_address_of_another_machine_is_an_error_that_says_so() -> None:
    with pytest.raises(
        ConfigError, match=r"no port to listen on at 192\.0\.2\.1: Cannot assign .* correct the address"
    ):
        free_port("192.0.2.1")


def test_a_node_on_loopback_reaches_loopback_by_loopback() -> None:
    assert address_towards("127.0.0.1:50000") == "127.0.0.1"


def test_an_interface_stands_for_its_ipv4_address() -> None:
    assert ipv4_of("lo") == "127.0.0.1"
    assert ipv4_of("192.0.2.1") == "192.0.2.1"


@pytest.mark.parametrize("address", ["ib7", "::1", "localhost"])
def test_what_is_neither_an_ipv4_address_nor_an_interface_is_refused(address: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"'{address}' is neither .*\. Give its IPv4 address, or one of its interfaces: .*\blo\b"
    ):
        ipv4_of(address)
