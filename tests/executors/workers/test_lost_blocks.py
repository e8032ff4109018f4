"""Which failures of workers and of their jobs end a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost
from parsl.jobs.states import JobState, JobStatus

from sonic_parsl.errors import DataError, PoolLostError
from sonic_parsl.executors.site import RETRIES, _retry_cost
from sonic_parsl.executors.workers.lost_blocks import LostBlocks


class Executor:
    """Parsl's executor, as far as its blocks go."""

    def __init__(self) -> None:
        self.provider = SimpleNamespace(init_blocks=1)
        self.connected: list[str] = []
        self.given_up: list[Any] = []

    def connected_blocks(self) -> list[str]:
        return self.connected

    def set_bad_state_and_fail_all(self, error: Exception) -> None:
        self.given_up.append(error)


@pytest.fixture
def executor() -> Executor:
    return Executor()


def failed(count: int) -> dict[str, JobStatus]:
    return {str(number): JobStatus(JobState.FAILED, "it was taken away") for number in range(count)}


def test_the_first_failure_is_the_end_where_nothing_ever_connected(executor: Executor) -> None:
    LostBlocks()(executor, failed(1))
    (error,) = executor.given_up
    assert "it was taken away" in str(error)


def test_any_number_of_jobs_may_be_taken_away_that_have_worked(executor: Executor) -> None:
    judge = LostBlocks()
    for number in range(12):
        executor.connected = [str(number)]
        judge(executor, failed(number))
        executor.connected = []
        judge(executor, failed(number + 1))
    assert not executor.given_up


def test_three_in_a_row_that_never_connect_are_the_end(executor: Executor) -> None:
    judge = LostBlocks()
    executor.connected = ["4"]
    judge(executor, failed(4))
    executor.connected = []
    judge(executor, failed(7))
    assert not executor.given_up
    judge(executor, failed(8))
    assert executor.given_up


@pytest.mark.parametrize("error", [WorkerLost(1, "node"), ManagerLost(b"pool", "node")])
def test_a_chunk_may_lose_its_worker_more_than_ten_times_but_not_for_ever(error: Exception) -> None:
    assert 10 * _retry_cost(error, None) < RETRIES < 20 * _retry_cost(error, None)


@pytest.mark.parametrize(
    ("error", "again"),
    [(DataError("the file cannot be had"), 2), (ValueError("it breaks"), 2), (PoolLostError("gone"), 0)],
)
def test_a_chunk_that_fails_is_tried_again_where_that_may_help(error: Exception, again: int) -> None:
    assert RETRIES // _retry_cost(error, None) == again
