"""A server is in the table while its lease is renewed, and every change that matters has a number."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.errors import ModelMismatchError
from sonic_parsl.pool import leases
from sonic_parsl.pool.leases import LeaseTable
from sonic_parsl.protocol import Departure, Drain, Join, Leave, Renew, ServedModel, ServerInfo, ServerLoad, ServerState

LEASE_S = 15.0


def info(server: str, lease_s: float = LEASE_S) -> ServerInfo:
    return ServerInfo(
        id=server,
        group="g",
        kind="cpu",
        fidelity="hardware",
        node="n",
        address="a:1",
        block_id="7",
        job_id="j",
        models=(),
        lease_s=lease_s,
    )


def joining(server: str, *, state: ServerState = "ready", lease_s: float = LEASE_S) -> Join:
    return Join(version="1", info=info(server, lease_s), state=state)


def leaving(server: str, *, failed: bool = False) -> Leave:
    return Leave(server_id=server, block_id="7", group="g", failed=failed, reason="told to", load=ServerLoad(rows=9))


def table_of(*servers: str, now: float = 0.0) -> LeaseTable:
    table = LeaseTable(run_id="r")
    for server in servers:
        table = leases.join(table, joining(server), now)
    return table


def states(table: LeaseTable) -> dict[str, str]:
    return {entry.info.id: entry.state for entry in table.snapshot().servers}


# One step at a time ---------------------------------------------------------


@given(start=st.floats(0, 1e6), lease_s=st.floats(1, 1e3), part=st.floats(0, 1, exclude_max=True))
def test_a_lease_ends_at_its_length_and_not_before(start: float, lease_s: float, part: float) -> None:
    table = leases.join(LeaseTable(run_id="r"), joining("a", lease_s=lease_s), start)
    expires = start + lease_s
    if start + part * lease_s < expires:
        assert leases.expire(table, start + part * lease_s) == (table, ())
    after, gone = leases.expire(table, expires)
    assert after.snapshot().servers == ()
    assert [(departure.server_id, departure.failed, departure.block_id) for departure in gone] == [("a", True, "7")]
    assert gone[0].reason == f"nothing was heard of it for {lease_s:g} s"
    assert gone[0].entry == table.leases["a"].entry


@given(pauses=st.lists(st.floats(0, LEASE_S - 0.01), max_size=10))
def test_a_lease_that_is_renewed_in_time_goes_on(pauses: list[float]) -> None:
    table, now = table_of("a"), 0.0
    for rows, pause in enumerate(pauses):
        now += pause
        table, gone = leases.expire(table, now)
        assert gone == ()
        table = leases.renew(table, Renew(server_id="a", load=ServerLoad(rows=rows)), now)
        assert table.snapshot().servers[0].load.rows == rows
    assert leases.expire(table, now + LEASE_S)[0].leases == {}


def test_load_alone_is_no_news() -> None:
    table = table_of("a")
    assert leases.renew(table, Renew("a", ServerLoad(rows=5)), 1.0).generation == table.generation


def test_a_server_that_is_not_in_the_table_cannot_renew_or_drain() -> None:
    table = table_of("a")
    assert leases.renew(table, Renew("b", ServerLoad()), 1.0) is table
    assert leases.drain(table, Drain("b", "why")) is table


def test_a_server_becomes_ready_by_joining_again() -> None:
    starting = leases.join(LeaseTable(run_id="r"), joining("a", state="starting"), 0.0)
    ready = leases.join(starting, joining("a"), 5.0)
    assert states(starting) == {"a": "starting"}
    assert states(ready) == {"a": "ready"}
    assert ready.leases["a"].expires == 5.0 + LEASE_S
    assert ready.generation == starting.generation + 1


def test_draining_is_news_once_and_is_asked_of_the_agent() -> None:
    table = table_of("a", "b")
    drained = leases.drain(table, Drain("a", "why"))
    assert states(drained) == {"a": "draining", "b": "ready"}
    assert drained.leases["a"].asked_to_drain
    assert not drained.leases["b"].asked_to_drain
    assert drained.generation == table.generation + 1
    assert leases.drain(drained, Drain("a", "again")) is drained


def test_a_draining_server_that_joins_again_is_still_asked_to_drain() -> None:
    drained = leases.drain(table_of("a"), Drain("a", "why"))
    assert leases.join(drained, joining("a"), 1.0).leases["a"].asked_to_drain


def test_a_server_that_leaves_brings_its_last_load_home() -> None:
    table, departure = leases.leave(table_of("a", "b"), leaving("a", failed=True))
    assert states(table) == {"b": "ready"}
    assert departure.failed
    assert departure.entry is not None
    assert departure.entry.load == ServerLoad(rows=9)


def test_a_server_that_never_joined_can_say_why_it_ends() -> None:
    table = table_of("b")
    same, departure = leases.leave(table, replace(leaving("a", failed=True), stderr="no such model"))
    assert same is table
    assert departure == Departure("a", "7", "g", failed=True, reason="told to", stderr="no such model", entry=None)


def test_the_first_reason_why_a_pool_is_lost_stays() -> None:
    table = table_of("a")
    lost = leases.lose(table, "first")
    assert leases.lose(lost, "second") is lost
    assert lost.snapshot().lost == "first"
    assert lost.generation == table.generation + 1
    assert states(lost) == {"a": "ready"}


# A registry that takes over -------------------------------------------------


def test_a_registry_that_takes_over_has_the_same_servers_with_leases_that_start_anew() -> None:
    old = leases.drain(table_of("a", "b", "c"), Drain("b", "why"))
    new = leases.restored(old.snapshot(), [], 1e5)
    assert new.snapshot().servers == old.snapshot().servers
    assert new.generation == old.generation + 1
    assert leases.expire(new, 1e5 + LEASE_S - 0.1) == (new, ())
    assert len(leases.expire(new, 1e5 + LEASE_S)[1]) == 3


def test_a_server_that_was_draining_is_still_asked_to() -> None:
    old = leases.drain(table_of("a", "b"), Drain("a", "why"))
    new = leases.restored(old.snapshot(), [], 0.0)
    assert new.leases["a"].asked_to_drain
    assert not new.leases["b"].asked_to_drain


def test_a_pool_that_was_lost_is_lost_for_good() -> None:
    old = leases.lose(table_of("a"), "why")
    assert leases.restored(old.snapshot(), [], 0.0).lost == "why"


def test_what_servers_that_are_gone_have_served_stays_binding() -> None:
    gone = replace(info("gone"), models=(ServedModel("m", "1", 8, (), (), source_digest="aa"),))
    new = leases.restored(table_of("a").snapshot(), [gone], 0.0)
    changed = replace(gone, id="b", models=(replace(gone.models[0], source_digest="bb"),))
    with pytest.raises(ModelMismatchError, match="server gone has served it with aa"):
        leases.join(new, replace(joining("b"), info=changed), 1.0)
    assert "b" not in new.leases


# Any history ----------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Something that happens to one server, after a pause in s."""

    what: str
    server: str
    pause_s: float


steps = st.builds(
    Step,
    what=st.sampled_from(["starting", "ready", "renew", "drain", "leave", "expire", "lose"]),
    server=st.sampled_from("abc"),
    pause_s=st.floats(0, LEASE_S),
)


def take(table: LeaseTable, step: Step, now: float) -> tuple[LeaseTable, tuple[Departure, ...]]:
    if step.what == "renew":
        return leases.renew(table, Renew(step.server, ServerLoad(rows=int(now))), now), ()
    if step.what == "drain":
        return leases.drain(table, Drain(step.server, "why")), ()
    if step.what == "leave":
        after, departure = leases.leave(table, leaving(step.server))
        return after, (departure,) if departure.entry else ()
    if step.what == "expire":
        return leases.expire(table, now)
    if step.what == "lose":
        return leases.lose(table, "why"), ()
    state: ServerState = "starting" if step.what == "starting" else "ready"
    return leases.join(table, joining(step.server, state=state), now), ()


@given(history=st.lists(steps, max_size=40))
def test_in_any_history_generations_count_the_changes_that_clients_must_know(history: list[Step]) -> None:
    table, now = LeaseTable(run_id="r"), 0.0
    for step in history:
        now += step.pause_s
        before, (table, gone) = table, take(table, step, now)
        changed = (states(before), before.lost) != (states(table), table.lost)
        rejoined = step.what in {"starting", "ready"}  # address and models may be new
        assert table.generation == before.generation + (changed or rejoined)
        assert {departure.server_id for departure in gone} == states(before).keys() - states(table).keys()


@given(history=st.lists(steps, max_size=40))
def test_in_any_history_exactly_the_servers_heard_of_within_their_lease_are_in_the_table(history: list[Step]) -> None:
    table, now, heard = LeaseTable(run_id="r"), 0.0, dict[str, float]()
    for step in history:
        now += step.pause_s
        table, _ = leases.expire(table, now)
        heard = {server: at for server, at in heard.items() if at + LEASE_S > now}
        table, _ = take(table, step, now)
        if step.what in {"starting", "ready"} or (step.what == "renew" and step.server in heard):
            heard[step.server] = now
        elif step.what == "leave":
            heard.pop(step.server, None)
        assert states(table).keys() == heard.keys()
