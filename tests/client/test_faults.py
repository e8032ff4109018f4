from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sonic_parsl.client import link, retry
from sonic_parsl.client.call import Call
from sonic_parsl.client.link import MAX_REQUESTS_IN_FLIGHT
from sonic_parsl.client.session import Session
from tests.leaks import wait_until

if TYPE_CHECKING:
    from tests.client.conftest import Registry, Server, Servers

ROWS = 64 * 150
X = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4)


def send(session: Session) -> Call:
    """Send 150 requests of 10 ms each."""
    return session.submit(session.served("timed"), {"INPUT0": X}, rows=ROWS)


def most_in_flight(session: Session) -> int:
    time.sleep(0.001)
    return max(len(link.in_flight) for link in tuple(session._dispatcher._links.values()))


def both_work(call: Call) -> bool:
    return len(call.ledger.record().servers) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_goes_in_mid_call_loses_no_row(
    registry: Registry, session: Session, servers: Servers, wait_for: Callable[..., None], number: signal.Signals
) -> None:
    one, other = servers.start(2)
    registry.show(one.entry(), other.entry())
    call = send(session)
    wait_for(lambda: both_work(call))
    one.signal(number)
    most = max(most_in_flight(session) for _ in iter(call.done, True))
    assert 0 < most <= MAX_REQUESTS_IN_FLIGHT
    np.testing.assert_array_equal(call.result(60.0)["OUTPUT0"], X)
    record = call.ledger.record()
    assert sum(share.rows for share in record.servers.values()) == ROWS
    assert record.servers[other.id].rows > record.servers[one.id].rows
    # Whoever answers "no" at once must not be asked over and over.
    assert 0 < record.failovers <= record.retries < 40


def test_requests_to_a_server_whose_lease_ends_go_elsewhere_at_once(
    registry: Registry, session: Session, servers: Servers, wait_for: Callable[..., None]
) -> None:
    one, other = servers.start(2)
    registry.show(one.entry(), other.entry())
    call = send(session)
    wait_for(lambda: both_work(call))
    one.signal(signal.SIGSTOP)
    start = time.monotonic()
    registry.show(other.entry())
    np.testing.assert_array_equal(call.result(60.0)["OUTPUT0"], X)
    assert time.monotonic() - start < 8.0  # sooner than any time-out
    record = call.ledger.record()
    assert record.retries == record.failovers > 0


def test_requests_go_on_at_once_as_often_as_leases_end(
    registry: Registry, session: Session, servers: Servers, wait_for: Callable[..., None]
) -> None:
    *frozen, last = servers.start(3)
    start = time.monotonic()
    for number, server in enumerate(frozen):
        server.signal(signal.SIGSTOP)
        registry.show(server.entry())
        if not number:
            call = send(session)
        wait_for(lambda: set(session._dispatcher._links) == {server.id} and most_in_flight(session))  # noqa: B023
    registry.show(last.entry())
    np.testing.assert_array_equal(call.result(60.0)["OUTPUT0"], X)
    assert time.monotonic() - start < 8.0  # sooner than any time-out
    record = call.ledger.record()
    assert record.retries == 2 * MAX_REQUESTS_IN_FLIGHT
    assert record.servers.keys() == {last.id}


def test_a_draining_server_gets_nothing_new(
    registry: Registry, session: Session, pair: list[Server], wait_for: Callable[..., None]
) -> None:
    registry.show(*(server.entry() for server in pair))
    call = send(session)
    wait_for(lambda: both_work(call))
    registry.show(pair[0].entry("draining"), pair[1].entry())
    np.testing.assert_array_equal(call.result(60.0)["OUTPUT0"], X)
    record = call.ledger.record()
    assert record.retries == 0
    assert record.servers[pair[0].id].rows < record.servers[pair[1].id].rows / 2


def test_a_server_that_joins_in_mid_call_is_used(
    registry: Registry, session: Session, pair: list[Server], wait_for: Callable[..., None]
) -> None:
    registry.show(pair[0].entry())
    call = send(session)
    wait_for(lambda: call.ledger.record().servers)
    registry.show(*(server.entry() for server in pair))
    np.testing.assert_array_equal(call.result(60.0)["OUTPUT0"], X)
    record = call.ledger.record()
    assert record.servers[pair[1].id].rows > ROWS / 4
    assert record.retries == 0


def test_when_all_servers_are_gone_a_call_waits_for_a_new_one(
    registry: Registry, session: Session, servers: Servers, pair: list[Server], wait_for: Callable[..., None]
) -> None:
    (only,) = servers.start(1)
    registry.show(only.entry())
    call = send(session)
    wait_for(lambda: call.ledger.record().servers)
    only.signal(signal.SIGKILL)
    registry.show()
    wait_for(lambda: session.table and not session.table.servers)
    assert not call.wait(0.1)
    registry.show(pair[0].entry())
    np.testing.assert_array_equal(call.result(60.0)["OUTPUT0"], X)


def test_a_server_that_is_out_of_reach_but_in_the_table_is_spared_until_it_answers_again(
    registry: Registry, session: Session, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is where a network is cut between this process and a server, and not between the server and the registry."""
    monkeypatch.setattr(retry, "FLOOR_S", 0.5)
    monkeypatch.setattr(retry, "UNKNOWN_TIMEOUT_S", 5.0)
    monkeypatch.setattr(link, "SPARED_S", 10.0)
    silent, other = servers.start(2)
    registry.show(silent.entry(), other.entry())
    assert len(send(session).result(60.0)["OUTPUT0"]) == ROWS
    silent.signal(signal.SIGSTOP)
    hit = send(session)
    np.testing.assert_array_equal(hit.result(60.0)["OUTPUT0"], X)
    assert hit.ledger.record().failovers > 0
    for _ in range(3):
        call = send(session)
        np.testing.assert_array_equal(call.result(60.0)["OUTPUT0"], X)
        record = call.ledger.record()
        assert (record.retries, set(record.servers)) == (0, {other.id})
    silent.signal(signal.SIGCONT)

    def both_are_asked() -> bool:
        call = send(session)
        return len(call.result(60.0)) == 1 and both_work(call)

    wait_until(both_are_asked, 30)


def test_a_late_server_is_asked_where_there_is_no_other(
    registry: Registry, session: Session, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FLOOR_S", 0.5)
    monkeypatch.setattr(retry, "UNKNOWN_TIMEOUT_S", 0.5)
    (only,) = servers.start(1)
    registry.show(only.entry())
    session.served("timed")
    only.signal(signal.SIGSTOP)
    call = send(session)
    wait_until(lambda: call.ledger.retries > 0, 30)
    only.signal(signal.SIGCONT)
    np.testing.assert_array_equal(call.result(30.0)["OUTPUT0"], X)
