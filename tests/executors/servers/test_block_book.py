"""What is known of a block, from whichever side it is heard first."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsl.jobs.states import JobState, JobStatus

from sonic_parsl.executors.servers.block_book import ENDED, BlockBook
from sonic_parsl.pool.scaler import Block, Demand
from sonic_parsl.protocol import Departure, ServerEntry, ServerInfo, ServerLoad, ServerState, ServerTable


def entry(
    block: str, *, state: ServerState = "ready", group: str = "gpu", load: ServerLoad | None = None
) -> ServerEntry:
    info = ServerInfo(
        id=f"{group}-{block}",
        group=group,
        kind="cpu",
        fidelity="hardware",
        node="n",
        address="a:1",
        block_id=block,
        job_id="j",
        models=(),
    )
    return ServerEntry(info=info, state=state, load=load or ServerLoad())


def table(*entries: ServerEntry) -> ServerTable:
    return ServerTable(run_id="r", generation=1, servers=entries)


def departure(block: str, *, group: str = "gpu", failed: bool = True, stderr: str = "") -> Departure:
    return Departure(
        server_id=f"{group}-{block}", block_id=block, group=group, failed=failed, reason="Triton died", stderr=stderr
    )


SAID = {"1": "E: no disk"}
"""What jobs wrote to their stderr."""


@pytest.fixture
def book() -> BlockBook:
    """Return the book of a group with two blocks, submitted at 0 s."""
    book = BlockBook("gpu", lambda block_id: SAID.get(block_id, ""))
    book.submitted("0", now=0.0)
    book.submitted("1", now=0.0)
    return book


def block(book: BlockBook, number: int = 0) -> Block:
    return book.blocks[number]


def test_blocks_are_listed_oldest_first(book: BlockBook) -> None:
    book.submitted("10", now=1.0)
    book.submitted("2", now=2.0)
    assert [block.id for block in book.blocks] == ["0", "1", "10", "2"]


def test_the_provider_says_when_a_job_runs(book: BlockBook) -> None:
    book.hear_provider({"0": JobStatus(JobState.PENDING)}, now=1.0)
    assert block(book).phase == "queued"
    book.hear_provider({"0": JobStatus(JobState.RUNNING)}, now=2.0)
    book.hear_provider({"0": JobStatus(JobState.RUNNING)}, now=3.0)
    assert block(book).phase == "starting"
    assert block(book).running_at == 2.0


def test_a_server_may_be_heard_of_before_the_provider_says_that_its_job_runs(book: BlockBook) -> None:
    book.hear_registry(table(entry("0", state="starting")), [], now=5.0)
    assert block(book).phase == "starting"
    assert block(book).running_at == 5.0


@pytest.mark.parametrize("state", sorted(ENDED))
def test_a_job_that_ends_before_a_server_was_ready_has_failed_and_says_how(book: BlockBook, state: JobState) -> None:
    book.hear_provider({"0": JobStatus(state, message="on node 7", exit_code=3)}, now=1.0)
    assert block(book).phase == "ended"
    assert block(book).failure == f"its job ended as {state.name}, exit code 3\non node 7"


@pytest.mark.parametrize("before", [JobState.PENDING, JobState.RUNNING])
def test_a_job_of_which_the_provider_knows_no_state_has_not_ended(book: BlockBook, before: JobState) -> None:
    book.hear_provider({"0": JobStatus(before)}, now=1.0)
    phase = block(book).phase
    book.hear_provider({"0": JobStatus(JobState.UNKNOWN)}, now=2.0)
    assert not book.has_ended("0")
    assert (block(book).phase, block(book).failure) == (phase, None)


def test_what_a_job_wrote_last_is_told_with_its_failure(book: BlockBook) -> None:
    book.hear_provider({"1": JobStatus(JobState.FAILED, message="on node 7")}, now=1.0)
    assert block(book, 1).failure == "its job ended as FAILED\non node 7\nE: no disk"
    book.fail("1", "another reason")
    assert block(book, 1).failure == "its job ended as FAILED\non node 7\nE: no disk"


@pytest.mark.parametrize("later", [JobState.RUNNING, JobState.UNKNOWN, JobState.COMPLETED])
def test_a_job_once_called_finished_stays_so(book: BlockBook, later: JobState) -> None:
    book.hear_provider({"0": JobStatus(JobState.FAILED)}, now=1.0)
    book.hear_provider({"0": JobStatus(later)}, now=2.0)
    assert (block(book).failure, block(book).running_at) == ("its job ended as FAILED", None)
    assert book.has_ended("0")
    assert not book.has_ended("1")
    assert block(book).phase == "ended"


def test_while_there_is_a_lease_a_block_lives_whatever_the_provider_says(book: BlockBook) -> None:
    book.hear_registry(table(entry("0")), [], now=1.0)
    book.hear_provider({"0": JobStatus(JobState.MISSING)}, now=2.0)
    assert block(book).phase == "ready"
    assert block(book).failure is None


def test_the_stderr_of_a_server_is_told_also_when_the_end_of_its_job_was_heard_first(book: BlockBook) -> None:
    book.hear_provider({"0": JobStatus(JobState.FAILED, exit_code=1)}, now=1.0)
    book.hear_registry(table(), [departure("0", stderr="E: no model")], now=1.0)
    assert block(book).failure == "Triton died\nE: no model"


def test_the_end_of_a_job_does_not_hide_why_its_server_failed(book: BlockBook) -> None:
    book.hear_registry(table(), [departure("0", stderr="E: no model")], now=1.0)
    book.hear_provider({"0": JobStatus(JobState.FAILED, exit_code=1)}, now=2.0)
    assert block(book).failure == "Triton died\nE: no model"


def test_a_block_that_the_pool_cancelled_has_not_failed(book: BlockBook) -> None:
    book.cancelled("0")
    book.hear_registry(table(), [departure("0")], now=1.0)
    book.hear_provider({"0": JobStatus(JobState.CANCELLED)}, now=2.0)
    assert block(book).failure is None
    assert not block(book).is_live


def test_a_block_whose_server_left_is_gone(book: BlockBook) -> None:
    book.hear_registry(table(entry("0"), entry("1")), [], now=1.0)
    book.hear_registry(table(entry("1")), [departure("0", failed=False)], now=2.0)
    assert [block.phase for block in book.blocks] == ["ended", "ready"]
    assert block(book).was_ready
    assert block(book).gone_at == 2.0
    assert block(book).failure is None


def test_a_departure_heard_before_the_table_without_the_server_is_not_forgotten(book: BlockBook) -> None:
    left = [departure("0", failed=False)]
    book.hear_registry(table(entry("0")), left, now=1.0)
    assert block(book).phase == "ready"
    book.hear_registry(table(), left, now=2.0)
    assert block(book).phase == "ended"


def test_others_are_told_of_blocks_without_a_server_and_of_the_last_that_were_lost(book: BlockBook) -> None:
    for number in range(2, 10):
        book.submitted(str(number), now=1.0)
    book.hear_provider({"0": JobStatus(JobState.RUNNING)}, now=1.0)
    book.hear_registry(table(entry("1"), entry("2", state="starting")), [], now=1.0)
    book.cancelled("3")
    lost = {str(number): JobStatus(JobState.FAILED, message="more") for number in range(4, 10)}
    book.hear_provider(lost, now=2.0)
    book.submitted("10", now=3.0)
    told = book.without_servers({"0": "job0", "10": "job10"})
    assert [(one.block_id, one.job_id, one.state) for one in told if one.state != "lost"] == [
        ("0", "job0", "starting"),
        ("10", "job10", "queued"),
    ]
    assert [one.block_id for one in told if one.state == "lost"] == ["5", "6", "7", "8", "9"]
    assert {one.reason for one in told if one.state == "lost"} == {"its job ended as FAILED"}


def test_a_server_that_joins_again_after_its_lease_ended_is_back(book: BlockBook) -> None:
    book.hear_registry(table(), [departure("0")], now=1.0)
    book.hear_registry(table(entry("0")), [departure("0")], now=2.0)
    assert block(book).phase == "ready"


def test_a_block_of_two_servers_lives_while_one_of_them_does(book: BlockBook) -> None:
    first, second = (replace(entry("0"), info=replace(entry("0").info, id=name)) for name in ("gpu-0-a", "gpu-0-b"))
    book.hear_registry(table(first, second), [], now=1.0)
    assert block(book).servers_ready == 2
    assert book.servers_of("0", table(first, second)) == ["gpu-0-a", "gpu-0-b"]
    book.hear_registry(table(second), [departure("0")], now=2.0)
    assert block(book).is_live
    book.hear_registry(table(), [departure("0"), departure("0")], now=3.0)
    assert block(book).phase == "ended"


def test_servers_of_another_group_are_not_ours_even_if_their_block_has_the_same_number(book: BlockBook) -> None:
    others = [entry("0", group="cpu")]
    book.hear_registry(table(*others), [departure("1", group="cpu")], now=1.0)
    assert [block.phase for block in book.blocks] == ["queued", "queued"]
    assert book.servers_of("0", table(*others, entry("0"))) == ["gpu-0"]


def test_what_is_said_of_unknown_blocks_is_ignored(book: BlockBook) -> None:
    before = book.blocks
    book.hear_provider({"9": JobStatus(JobState.FAILED)}, now=1.0)
    book.hear_registry(table(entry("9")), [departure("8")], now=1.0)
    book.fail("9", "why")
    assert book.blocks == before


# Demand ---------------------------------------------------------------------


def loaded(*loads: tuple[int, float]) -> ServerTable:
    """Return a table whose servers answered so many requests, which waited so many ms in total."""
    entries = (
        entry(str(block), load=ServerLoad(requests=count, queue_ms=ms)) for block, (count, ms) in enumerate(loads)
    )
    return table(*entries)


def test_demand_is_what_happened_since_the_last_look(book: BlockBook) -> None:
    book.hear_registry(loaded((10, 100.0), (0, 0.0)), [], now=1.0)
    book.hear_registry(loaded((12, 300.0), (2, 0.0)), [], now=2.0)
    assert book.demand(2.0) == Demand(queue_ms=50.0, idle_s=0.0)


def test_a_group_without_requests_is_idle_since_the_last_one(book: BlockBook) -> None:
    book.hear_registry(loaded((1, 100.0)), [], now=1.0)
    book.hear_registry(loaded((1, 100.0)), [], now=9.0)
    assert book.demand(11.0) == Demand(queue_ms=0.0, idle_s=10.0, unserved_s=2.0)


def test_a_group_that_never_had_a_request_is_idle_since_the_first_look(book: BlockBook) -> None:
    assert book.demand(5.0) == Demand(unserved_s=math.inf)
    book.hear_registry(table(), [], now=5.0)
    assert book.demand(8.0).idle_s == 3.0


def test_a_ready_server_of_any_group_serves_the_pool(book: BlockBook) -> None:
    assert book.demand(1.0).unserved_s == math.inf
    book.hear_registry(table(entry("0", group="cpu")), [], now=2.0)
    assert book.demand(2.0).unserved_s == 0.0
    book.hear_registry(table(entry("0", group="cpu", state="draining")), [], now=9.0)
    assert book.demand(9.0).unserved_s == 7.0


counts = st.lists(st.tuples(st.integers(0, 100), st.floats(0, 1e4)), max_size=3)


@given(looks=st.lists(counts, min_size=1, max_size=10))
def test_demand_is_never_negative_whichever_servers_come_and_go(looks: list[list[tuple[int, float]]]) -> None:
    book = BlockBook("gpu", lambda block_id: SAID.get(block_id, ""))
    for now, loads in enumerate(looks):
        book.hear_registry(loaded(*loads), [], now=float(now))
        demand = book.demand(float(now))
        assert demand.queue_ms >= 0
        assert 0 <= demand.idle_s <= now


def test_a_running_total_that_shrinks_is_not_taken_for_work(book: BlockBook) -> None:
    book.hear_registry(loaded((5, 50.0), (50, 500.0)), [], now=1.0)
    only = replace(loaded((6, 60.0)), generation=2)
    book.hear_registry(only, [], now=2.0)
    assert book.demand(3.0) == Demand(queue_ms=0.0, idle_s=2.0, unserved_s=1.0)


def test_when_a_walltime_ends_is_told_by_the_books_own_clock(book: BlockBook, monkeypatch: pytest.MonkeyPatch) -> None:
    served = entry("0")
    ends = replace(served, info=replace(served.info, ends_at=time.time() + 100.0))
    book.hear_registry(table(ends), [], now=5.0)
    assert block(book).ends_at == pytest.approx(105.0, abs=1.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # somebody sets the wall clock
    book.hear_registry(table(ends), [], now=6.0)
    assert block(book).ends_at == pytest.approx(105.0, abs=1.0)
    book.hear_registry(table(), [], now=7.0)
    assert block(book).ends_at is None
