"""Which failures of workers' jobs end a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from parsl.jobs.states import JobState, JobStatus

from sonic_parsl.executors.lost_blocks import LostBlocks


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
