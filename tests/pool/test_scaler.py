"""How many servers a group has: enough, never too many, and not for ever in vain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic_parsl.pool.scaler import (
    BACK_OFF_S,
    LAST_WORDS_S,
    LEAD_MARGIN,
    MAX_BACK_OFF_S,
    STARTS_LEARNT,
    Block,
    Decision,
    Demand,
    Policy,
    decide,
    lead_s,
)

POLICY = Policy(min_servers=2, max_servers=4, start_timeout_s=100.0)
BUSY = Demand(queue_ms=1000.0)
IDLE = Demand(idle_s=1000.0)
CALM = Demand()
UNSERVED = Demand(unserved_s=math.inf)


def queued(name: str, at: float = 0.0) -> Block:
    return Block(id=name, submitted_at=at)


def starting(name: str, at: float = 0.0) -> Block:
    return Block(id=name, submitted_at=at, running_at=at, servers_starting=1)


def ready(name: str, at: float = 0.0) -> Block:
    return Block(id=name, submitted_at=at, running_at=at, servers_ready=1, ready_at=at)


def dead(name: str, at: float = 0.0) -> Block:
    """Return a block whose server was ready and is gone, though its job still runs."""
    return Block(id=name, submitted_at=at, running_at=at, ready_at=at, gone_at=at + 1)


def failed(name: str, at: float = 0.0, why: str = "no memory") -> Block:
    """Return a block that ended without a ready server."""
    return Block(id=name, submitted_at=at, running_at=at, job_ended=True, failure=why)


# One decision ---------------------------------------------------------------


def test_an_empty_group_is_filled_to_its_minimum() -> None:
    assert decide([], POLICY, CALM, 0.0) == Decision(start=2)


def test_a_group_on_its_way_is_left_alone() -> None:
    assert decide([queued("0"), starting("1")], POLICY, CALM, 50.0) == Decision()


def test_a_block_in_the_queue_may_wait_for_days_while_others_serve() -> None:
    assert decide([queued("0"), queued("1")], POLICY, CALM, 1e6) == Decision()


def test_where_nothing_serves_the_pool_is_lost_once_its_jobs_have_waited_for_too_long() -> None:
    blocks = [queued("0"), queued("1", at=50.0)]
    assert decide(blocks, POLICY, UNSERVED, 100.0) == Decision()
    decision = decide(blocks, POLICY, UNSERVED, 101.0)
    assert decision.lose == "the batch system started no server within 100 s"
    assert decision.waiting == ("0",)


def test_a_job_that_waited_while_others_served_gets_its_time_once_they_are_gone() -> None:
    blocks = [dead("0"), queued("1")]
    assert decide(blocks, POLICY, Demand(unserved_s=99.0), 1e6).lose is None
    assert decide(blocks, POLICY, Demand(unserved_s=101.0), 1e6).waiting == ("1",)


def test_a_pool_whose_server_is_starting_is_not_given_up_for_those_in_the_queue() -> None:
    assert decide([queued("0"), starting("1", at=150.0)], POLICY, UNSERVED, 200.0).lose is None


def test_a_dead_server_is_replaced_and_its_job_cancelled() -> None:
    decision = decide([ready("0"), dead("1")], POLICY, CALM, 50.0)
    assert decision == Decision(start=1, cancel=(("1", "its servers are gone"),))


def test_a_dead_server_is_replaced_also_when_the_group_is_idle() -> None:
    assert decide([ready("0"), dead("1")], POLICY, IDLE, 50.0).start == 1


def test_a_block_that_runs_too_long_without_a_ready_server_is_cancelled_and_replaced() -> None:
    silent = replace(starting("1"), servers_starting=0)
    decision = decide([ready("0"), silent], POLICY, CALM, 100.5)
    assert decision == Decision(start=1, cancel=(("1", "no server was ready 100 s after it started"),))


def test_a_late_server_that_has_joined_is_given_time_to_say_why() -> None:
    blocks = [ready("0"), starting("1")]
    assert decide(blocks, POLICY, CALM, 100.5) == Decision()
    assert decide(blocks, POLICY, CALM, 100.5 + LAST_WORDS_S).cancel[0][0] == "1"


def test_a_draining_server_counts_no_more_and_is_not_cancelled() -> None:
    leaving = replace(ready("1"), servers_ready=0, servers_leaving=1)
    assert decide([ready("0"), leaving], POLICY, CALM, 50.0) == Decision(start=1)


def test_waiting_requests_add_one_server_at_a_time_up_to_the_maximum() -> None:
    blocks = [ready("0"), ready("1")]
    assert decide(blocks, POLICY, BUSY, 50.0) == Decision(start=1)
    assert decide([*blocks, starting("2")], POLICY, BUSY, 50.0) == Decision()
    assert decide([*blocks, ready("2"), ready("3")], POLICY, BUSY, 50.0) == Decision()


def test_an_idle_group_drains_its_newest_servers_first() -> None:
    decision = decide([ready(str(number)) for number in range(4)], POLICY, IDLE, 50.0)
    assert decision == Decision(drain=("3", "2"))


def test_servers_beyond_the_maximum_are_drained() -> None:
    assert decide([ready(str(number)) for number in range(6)], POLICY, CALM, 50.0).drain == ("5", "4")


@pytest.mark.parametrize(("failures", "pause_s"), [(1, BACK_OFF_S), (2, 2 * BACK_OFF_S), (7, MAX_BACK_OFF_S)])
def test_the_pause_after_failed_starts_doubles_up_to_a_minute(failures: int, pause_s: float) -> None:
    policy = replace(POLICY, max_failed_starts=10)
    blocks = [failed(str(number), at=10.0) for number in range(failures)]
    assert decide(blocks, policy, CALM, 10.0 + pause_s - 0.01).start == 0
    assert decide(blocks, policy, CALM, 10.0 + pause_s).start == 2


def test_the_pool_is_lost_after_so_many_failures_in_a_row_and_says_why() -> None:
    blocks = [failed("0"), failed("1"), failed("2", why="E1123 libcuda.so not found")]
    decision = decide(blocks, POLICY, CALM, 1e3)
    assert decision.lose is not None
    assert decision.lose.startswith("3 servers in a row failed to start. Mend what they say:")
    assert decision.lose.splitlines()[1:] == ["  blocks 0, 1: no memory", "  block 2: E1123 libcuda.so not found"]
    assert decision.start == 0


def test_a_pool_that_is_lost_cancels_what_is_still_running() -> None:
    blocks = [failed("0"), failed("1"), starting("2")]
    decision = decide(blocks, POLICY, CALM, 101.0 + LAST_WORDS_S)
    assert decision.lose is not None
    assert decision.lose.endswith("block 2: no server was ready 100 s after it started")
    assert [block for block, _ in decision.cancel] == ["2"]


def test_a_group_goes_on_with_the_servers_it_has_and_tries_again_now_and_then() -> None:
    blocks = [ready("0"), *(failed(str(number)) for number in range(1, 9))]
    assert decide(blocks, POLICY, BUSY, MAX_BACK_OFF_S - 0.1) == Decision()
    assert decide(blocks, POLICY, BUSY, MAX_BACK_OFF_S) == Decision(start=1)


def test_a_group_that_cannot_start_does_not_lose_a_pool_that_others_serve() -> None:
    blocks = [failed("0"), failed("1"), failed("2")]
    assert decide(blocks, POLICY, replace(CALM, served_elsewhere=True), 1e3) == Decision(start=2, hopeless=True)
    assert decide(blocks, POLICY, CALM, 1e3).lose is not None


def test_a_server_that_was_ready_ends_the_row_of_failures() -> None:
    blocks = [failed("0"), failed("1"), dead("2"), failed("3")]
    decision = decide(blocks, POLICY, CALM, 1e3)
    assert decision.lose is None
    assert decision.start == 2


def test_a_block_that_the_pool_itself_ended_is_no_failure() -> None:
    unwanted = replace(queued("0"), cancelled=True, job_ended=True)
    assert decide([unwanted] * 5, POLICY, CALM, 0.0) == Decision(start=2)


def test_a_job_that_vanished_without_a_word_is_a_failure() -> None:
    gone = replace(queued("0"), job_ended=True)
    decision = decide([gone] * 3, POLICY, CALM, 0.0)
    assert decision.lose is not None
    assert decision.lose.endswith("its job ended before a server was ready")


# Walltimes -------------------------------------------------------------------

LONE = Policy(min_servers=1, max_servers=1, drain_before_s=120.0)


def ending(name: str, at: float, *, took_s: float = 40.0) -> Block:
    """Return a block that was ready `took_s` after it was submitted at 0, and whose walltime ends at `at`."""
    return replace(ready(name), ready_at=took_s, ends_at=at)


def test_a_replacement_is_asked_for_as_long_before_the_drain_as_a_start_takes() -> None:
    blocks = [ending("0", at=1000.0, took_s=40.0)]
    asked_at = 1000.0 - LONE.drain_before_s - LEAD_MARGIN * 40.0
    assert decide(blocks, LONE, CALM, asked_at - 0.1) == Decision()
    assert decide(blocks, LONE, CALM, asked_at) == Decision(start=1, replaced=("0",))


def test_it_is_asked_for_once() -> None:
    blocks = [replace(ending("0", at=1000.0), replaced=True), queued("1", at=830.0)]
    assert decide(blocks, LONE, CALM, 840.0) == Decision()


def test_the_longest_of_the_last_starts_is_what_a_start_takes() -> None:
    slow = [replace(dead(str(number)), ready_at=500.0) for number in range(2)]
    quick = [replace(dead(str(number)), ready_at=float(number)) for number in range(2, 2 + STARTS_LEARNT)]
    assert lead_s([*slow, *quick[1:]]) == LEAD_MARGIN * 500.0
    assert lead_s([*slow, *quick]) == LEAD_MARGIN * (1 + STARTS_LEARNT)
    assert lead_s([queued("0")]) == 0.0


def test_what_an_idle_group_does_not_need_is_not_replaced_and_goes_first() -> None:
    blocks = [ending("0", at=100.0), ready("1"), ready("2")]
    assert decide(blocks, POLICY, IDLE, 50.0) == Decision(drain=("0",))


@settings(deadline=None, max_examples=30)
@given(
    start_s=st.floats(0, 40),
    walltime_s=st.floats(400, 600),  # more than two hand-overs, so that no third generation is asked for in one
    drain_before_s=st.floats(5, 120),
    count=st.integers(1, 3),
)
def test_generations_follow_each_other_without_a_gap(
    start_s: float, walltime_s: float, drain_before_s: float, count: int
) -> None:
    policy = Policy(min_servers=count, max_servers=count, drain_before_s=drain_before_s)
    life = Life(policy, lambda _: (True, start_s), walltime_s=walltime_s)
    while life.now < 4 * walltime_s:
        life.step()
        if life.now > start_s + 2:
            assert sum(block.servers_ready for block in life.blocks) >= count, life.now
        assert life.live() <= 2 * count
    assert len(life.blocks) >= 3 * count


# A group's life -------------------------------------------------------------


@dataclass
class Life:
    """A group whose blocks do as they are told to, at one decision a second."""

    policy: Policy
    fate: Callable[[int], tuple[bool, float]]
    """Whether block n becomes ready, and how many seconds after its start it is ready or fails."""
    demand: Callable[[float], Demand] = lambda _: CALM
    walltime_s: float | None = None
    now: float = 0.0
    blocks: list[Block] = field(default_factory=list)
    lost: str | None = None
    starts: list[float] = field(default_factory=list)

    def live(self) -> int:
        return sum(block.is_live for block in self.blocks)

    def step(self) -> Decision:
        self.now += 1.0
        self.blocks = [self._age(number, block) for number, block in enumerate(self.blocks)]
        decision = decide(self.blocks, self.policy, self.demand(self.now), self.now)
        self.blocks = [replace(b, replaced=b.replaced or b.id in decision.replaced) for b in self.blocks]
        ended = {block for block, _ in decision.cancel} | set(decision.drain)
        late = {block for block, why in decision.cancel if why.startswith("no server")}
        for number, block in enumerate(self.blocks):
            if block.id in ended:
                failure = "late" if block.id in late else block.failure
                self.blocks[number] = replace(block, cancelled=True, servers_ready=0, failure=failure)
        for _ in range(decision.start):
            self.blocks.append(queued(str(len(self.blocks)), at=self.now))
        self.starts += [self.now] * (decision.start > 0)
        self.lost = self.lost or decision.lose
        return decision

    def _age(self, number: int, block: Block) -> Block:
        good, after_s = self.fate(number)
        if block.cancelled or block.job_ended or self.now - block.submitted_at < after_s:
            return block if block.running_at is not None else replace(block, running_at=self.now)
        if good:
            ends_at = None if self.walltime_s is None else block.submitted_at + self.walltime_s
            if ends_at is not None and self.now >= ends_at - self.policy.drain_before_s:
                return replace(block, servers_ready=0, gone_at=self.now, job_ended=True)
            return replace(block, servers_ready=1, ready_at=block.ready_at or self.now, ends_at=ends_at)
        return replace(block, job_ended=True, failure=f"broken {block.id}")


fates = st.lists(st.tuples(st.booleans(), st.floats(0, 20)), min_size=1, max_size=30)
policies = st.builds(
    lambda low, more, tries: Policy(
        min_servers=low, max_servers=low + more, start_timeout_s=10.0, max_failed_starts=tries
    ),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 4),
)


@given(policy=policies, fate=fates, waits_ms=st.lists(st.sampled_from([0.0, 100.0]), min_size=1, max_size=10))
def test_in_any_life_there_are_never_more_live_blocks_than_allowed(
    policy: Policy, fate: list[tuple[bool, float]], waits_ms: list[float]
) -> None:
    life = Life(
        policy,
        lambda number: fate[number % len(fate)],
        lambda now: Demand(queue_ms=waits_ms[int(now) % len(waits_ms)], idle_s=now % 150),
    )
    for _ in range(200):
        decision = life.step()
        assert life.live() <= policy.max_servers
        assert not set(decision.drain) & {block for block, _ in decision.cancel}
        if life.lost:
            assert not any(block.servers_ready for block in life.blocks)
            break


@given(policy=policies, after_s=st.floats(0, 20))
def test_a_group_that_cannot_start_is_given_up_after_bounded_tries(policy: Policy, after_s: float) -> None:
    life = Life(policy, lambda _: (False, after_s))
    while not life.lost:
        life.step()
        assert life.now < 1000
    assert "servers in a row failed to start" in life.lost
    assert len(life.blocks) < policy.max_failed_starts + policy.min_servers
    pauses = [later - earlier for earlier, later in zip(life.starts, life.starts[1:], strict=False)]
    assert all(pause >= BACK_OFF_S for pause in pauses)


@given(policy=policies, after_s=st.floats(0, 9), failures=st.integers(0, 3))
def test_a_group_that_starts_in_the_end_holds_its_minimum(policy: Policy, after_s: float, failures: int) -> None:
    policy = replace(policy, max_failed_starts=4)
    life = Life(policy, lambda number: (number >= failures, after_s))
    for _ in range(200):
        life.step()
    assert life.lost is None
    assert sum(block.phase == "ready" for block in life.blocks) == policy.min_servers
    assert life.step() == Decision(cancel=())
