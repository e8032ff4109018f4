"""What facts say of Parsl, each held by a test: blocks that are servers, under any strategy and order."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from typing_extensions import override

from sonic_parsl.errors import ConfigError, PoolLostError, RepositoryError
from sonic_parsl.executors.servers.server_executor import ServerExecutor
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.protocol import ServerTable
from tests.leaks import assert_nothing_is_left, our_processes, wait_until

MODELS = Path(__file__).parents[3] / "tests" / "models"
READY_S = 90.0


def servers(pool: ServerPool, **changes: Any) -> ServerExecutor:
    settings: dict[str, Any] = {"models": MODELS, "serve": ["identity"], "lease_s": 4.0, "drain_s": 5.0}
    return ServerExecutor(label="servers", pool=pool, **{"provider": LocalProvider(), **settings, **changes})


def workers() -> HighThroughputExecutor:
    return HighThroughputExecutor(
        label="workers",
        address="127.0.0.1",
        max_workers_per_node=1,
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
    )


@contextmanager
def loaded(executors: list[Any], folder: Path, *, strategy: str | None = "simple") -> Iterator[Any]:
    config = Config(
        executors=executors, run_dir=str(folder / "runinfo"), strategy=strategy, strategy_period=0.5, max_idletime=1.0
    )
    dfk = parsl.load(config)
    handlers = list(logging.getLogger("parsl").handlers)
    try:
        yield dfk
    finally:
        dfk.cleanup()
        for handler in handlers:  # Parsl lets go of its log file without closing it
            handler.close()
        assert_nothing_is_left()


class Mute(LocalProvider):  # type: ignore[misc]
    """Does not answer when jobs are to be cancelled."""

    @override
    def cancel(self, job_ids: list[Any]) -> list[bool]:
        raise TimeoutError(f"no answer about {len(job_ids)} job")


def test_a_batch_system_that_does_not_answer_at_the_end_keeps_no_pool(tmp_path: Path) -> None:
    pool = ServerPool(run_dir=tmp_path / "pool")
    executor = servers(pool, provider=Mute())
    executor.run_dir, executor.provider.script_dir = str(tmp_path), str(tmp_path)
    executor.start()
    with pytest.raises(TimeoutError, match="no answer about 1 job"):
        executor.shutdown()
    assert not pool.ref_path.exists()
    assert_nothing_is_left(30)  # the job's server ends by itself: nobody renews its lease


@parsl.python_app  # type: ignore[untyped-decorator]
def anywhere(x: int) -> int:
    return 2 * x


@parsl.python_app(executors=["workers"])  # type: ignore[untyped-decorator]
def on_workers(x: int) -> int:
    return 3 * x


def is_ready(count: int) -> Callable[[ServerTable], bool]:
    return lambda table: len(table.ready) == count


def ready_ids(pool: ServerPool) -> set[str]:
    return {entry.info.id for entry in pool.table.ready}


@pytest.mark.parametrize("strategy", ["simple", "htex_auto_scale", "none"])
def test_under_any_strategy_an_idle_pool_keeps_its_number_and_replaces_the_dead(strategy: str, tmp_path: Path) -> None:
    pool = ServerPool()
    with loaded([servers(pool), workers()], tmp_path, strategy=strategy):
        pool.wait_ready(timeout_s=READY_S)
        before = ready_ids(pool)
        for process in our_processes("bin/tritonserver"):
            process.kill()
        wait_until(lambda: ready_ids(pool) and not ready_ids(pool) & before, READY_S)
        assert len(pool.table.ready) == 1
        assert on_workers(7).result() == 21


def test_an_agent_killed_outright_is_replaced_once_its_lease_ends(tmp_path: Path) -> None:
    pool = ServerPool()
    with loaded([workers(), servers(pool, min_servers=2)], tmp_path):
        pool.wait_ready(2, timeout_s=READY_S)
        before = ready_ids(pool)
        our_processes("sonic_parsl.server.agent")[0].kill()
        wait_until(lambda: len(ready_ids(pool)) == 2 and ready_ids(pool) != before, READY_S)


def test_what_worker_init_takes_is_part_of_the_walltime(tmp_path: Path) -> None:
    pool, began = ServerPool(), tmp_path / "began"
    executor = servers(pool, provider=LocalProvider(worker_init=f"date +%s > {began}; sleep 5"), walltime_s=3600.0)
    with loaded([executor], tmp_path):
        pool.wait_ready(timeout_s=READY_S)
        (entry,) = pool.table.ready
        assert entry.info.ends_at is not None
        assert 0 <= int(began.read_text()) + 3600 - entry.info.ends_at <= 2


def test_a_task_that_lands_on_the_servers_runs_on_the_workers(tmp_path: Path) -> None:
    pool = ServerPool()
    with loaded([servers(pool), workers()], tmp_path):
        assert [anywhere(i).result() for i in range(20)] == [2 * i for i in range(20)]


def test_a_task_with_no_workers_anywhere_fails_with_a_sentence(tmp_path: Path) -> None:
    pool = ServerPool()
    only_servers = [servers(pool)]
    with loaded(only_servers, tmp_path), pytest.raises(ConfigError, match="no other executor could run it"):
        anywhere(1).result()


def broken_repository(folder: Path) -> Path:
    model = folder / "broken"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(
        'name: "broken"\nbackend: "python"\nmax_batch_size: 4\n'
        'input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]\noutput [{ name: "y" data_type: TYPE_FP32 dims: [1] }]\n'
    )
    (model / "1" / "model.py").write_text("raise RuntimeError('the licence server said no')\n")
    return folder


def test_servers_that_fail_at_start_lose_the_pool_with_their_stderr_and_leave_the_workers_alone(
    tmp_path: Path,
) -> None:
    pool = ServerPool()
    failing = servers(pool, models=broken_repository(tmp_path / "models"), serve=None, max_failed_starts=2)
    with loaded([failing, workers()], tmp_path):
        with pytest.raises(PoolLostError, match="the licence server said no"):
            pool.wait_ready(timeout_s=READY_S)
        assert failing.bad_state_is_set
        assert len({departure.block_id for departure in pool.departures}) == 2
        assert on_workers(2).result() == 6


def test_one_failed_start_is_tried_again(tmp_path: Path) -> None:
    pool = ServerPool()
    with loaded([servers(pool), workers()], tmp_path):
        wait_until(lambda: our_processes("sonic_parsl.server.agent"), READY_S)
        our_processes("sonic_parsl.server.agent")[0].kill()
        pool.wait_ready(timeout_s=READY_S)
        assert {entry.info.block_id for entry in pool.table.ready} == {"1"}


def test_a_wrong_repository_is_refused_before_a_block_is_submitted(tmp_path: Path) -> None:
    pool = ServerPool()
    executor = servers(pool, models=tmp_path / "nowhere", serve=None)
    executor.run_dir = str(tmp_path)
    with pytest.raises(RepositoryError, match="nowhere"):
        executor.start()
    assert executor.blocks_to_job_id == {}
    assert_nothing_is_left()


@pytest.mark.parametrize(("least", "most"), [(3, 1), (0, 1)])
def test_numbers_of_servers_that_make_no_sense_are_refused(least: int, most: int) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"at least {least} and at most {most}")):
        servers(ServerPool(), min_servers=least, max_servers=most)


def test_a_group_grows_while_requests_queue_and_shrinks_when_idle(tmp_path: Path) -> None:
    import numpy as np

    import sonic_parsl as sonic

    pool = ServerPool()
    timed = servers(pool, serve=["timed"], max_servers=2, queue_ms=5.0, idle_s=6.0)
    model = sonic.Model("timed", inputs={"INPUT0": ["x"]}, outputs={"OUTPUT0": ["a", "b", "c", "d"]})
    rows = np.zeros((64 * 100, 4), dtype="float32")
    with loaded([timed, workers()], tmp_path):
        pool.wait_ready(timeout_s=READY_S)
        calls = [model.submit({"INPUT0": rows}) for _ in range(12)]
        wait_until(lambda: len(pool.table.ready) == 2, READY_S)
        for call in calls:
            assert len(call.result()) == len(rows)
        wait_until(lambda: len(pool.table.servers) == 1, READY_S)


def test_a_pool_can_join_a_data_flow_kernel_that_is_loaded_already(tmp_path: Path) -> None:
    pool = ServerPool()
    with loaded([workers()], tmp_path) as dfk:
        dfk.add_executors([servers(pool)])
        pool.wait_ready(timeout_s=READY_S)
        assert on_workers(1).result() == 3
