"""Parsl without coffea: apps that use a model, on workers of any kind, with a pool set up in any way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import parsl
import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.providers import LocalProvider

import sonic_parsl as sonic
from sonic_parsl.errors import PoolNotFoundError
from sonic_parsl.executors.site import load_site
from sonic_parsl.workflows import btag_inputs
from tests.leaks import assert_nothing_is_left
from tests.live.conftest import LEASE_S, PACKAGED, write_site

Array = np.ndarray[Any, Any]
READY_S = 120.0
TAGGER = sonic.Model("btag", outputs=btag_inputs.CLASSES)


@parsl.python_app(executors=["workers"])  # type: ignore[untyped-decorator]
def score(model: Any, rows: Any) -> Any:
    import numpy as np

    scores = model(rows)
    return np.stack([scores[name].to_numpy() for name in scores.fields], axis=1)


def batches(count: int) -> list[Array]:
    generator = np.random.default_rng(1)
    return [generator.uniform(0, 50, (30 + i, len(btag_inputs.FEATURES))).astype(np.float32) for i in range(count)]


def assert_apps_score_right(count: int = 6) -> None:
    """Run several apps at once and compare with ONNX Runtime in this process."""
    session = onnxruntime.InferenceSession(PACKAGED / "btag/1/model.onnx")
    inputs = batches(count)
    futures = [score(TAGGER, rows) for rows in inputs]
    for rows, future in zip(inputs, futures, strict=True):
        np.testing.assert_allclose(future.result(), session.run(["scores"], {"features": rows})[0], atol=1e-6)


def workers(pool: sonic.ServerPool) -> sonic.WorkerExecutor:
    return sonic.WorkerExecutor(
        pool=pool, address="127.0.0.1", max_workers_per_node=1, provider=LocalProvider(init_blocks=1, max_blocks=1)
    )


def parsls_own_workers(worker_init: str = "") -> HighThroughputExecutor:
    return HighThroughputExecutor(
        label="workers",
        address="127.0.0.1",
        max_workers_per_node=1,
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1, worker_init=worker_init),
    )


def servers(pool: sonic.ServerPool) -> sonic.ServerExecutor:
    return sonic.ServerExecutor(
        label="gpu", pool=pool, provider=LocalProvider(), models=PACKAGED, serve=["btag"], lease_s=LEASE_S
    )


@contextmanager
def loaded(executors: list[Any], folder: Path) -> Iterator[Any]:
    """Parsl with these executors; nothing is left of it."""
    config = Config(executors=executors, run_dir=str(folder / "runinfo"), strategy_period=0.5)
    opened: list[logging.FileHandler] = []
    try:
        with parsl.load(config) as dfk:
            found = [x for x in logging.getLogger("parsl").handlers if isinstance(x, logging.FileHandler)]
            opened += [handler for handler in found if handler.baseFilename.startswith(str(folder))]
            yield dfk
    finally:
        for handler in opened:  # Parsl lets go of its log file without closing it
            handler.close()
    assert_nothing_is_left()


def test_apps_of_a_site(tmp_path: Path) -> None:
    with load_site(write_site(tmp_path, count=1)):
        assert_apps_score_right()
    assert_nothing_is_left()


@pytest.mark.parametrize("servers_first", [True, False])
def test_apps_with_a_config_written_by_hand(servers_first: bool, tmp_path: Path) -> None:
    pool = sonic.ServerPool()
    executors = [workers(pool), servers(pool)]
    with loaded(executors[::-1] if servers_first else executors, tmp_path):
        assert_apps_score_right()


def test_apps_in_threads(tmp_path: Path) -> None:
    with loaded([ThreadPoolExecutor(label="workers", max_threads=3), servers(sonic.ServerPool())], tmp_path):
        assert_apps_score_right()


@pytest.mark.parametrize("own", [workers, lambda pool: parsls_own_workers(pool.worker_init)], ids=["ours", "Parsl's"])
def test_apps_with_a_pool_that_joins_later_and_workers_that_know_where_its_file_will_be(
    own: Callable[[sonic.ServerPool], Any], tmp_path: Path
) -> None:
    pool = sonic.ServerPool()
    with loaded([own(pool)], tmp_path) as dfk:
        assert double(2).result() == 4
        dfk.add_executors([servers(pool)])
        assert_apps_score_right()


def test_workers_that_were_there_before_the_pool_say_what_they_need_and_can_be_told(tmp_path: Path) -> None:
    pool = sonic.ServerPool()
    with loaded([parsls_own_workers()], tmp_path) as dfk:
        assert double(2).result() == 4
        dfk.add_executors([servers(pool)])
        with pytest.raises(PoolNotFoundError, match="set SONIC_PARSL_POOL to the pool's file"):
            score(TAGGER, batches(1)[0]).result()
        tell(str(pool.ref_path)).result()
        assert_apps_score_right()


@parsl.python_app(executors=["workers"])  # type: ignore[untyped-decorator]
def double(x: int) -> int:
    return 2 * x


@parsl.python_app(executors=["workers"])  # type: ignore[untyped-decorator]
def tell(path: str) -> None:
    """Tell the one worker there is; Parsl keeps what an app writes into the environment."""
    import os

    os.environ["SONIC_PARSL_POOL"] = path
