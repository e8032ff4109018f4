from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sonic_parsl.credentials import Peer
from sonic_parsl.errors import DeadlineError, InferenceError, ModelNotFoundError, RejectedError
from sonic_parsl.kserve import KServe
from sonic_parsl.protocol import TensorSpec

if TYPE_CHECKING:
    from tests.client.conftest import Server

X = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[KServe]:
    stub = KServe(Peer(address))
    try:
        yield stub
    finally:
        await stub.close()


def test_a_triton_tells_what_it_serves(pair: list[Server]) -> None:
    async def check() -> None:
        async with connected(pair[0].address) as stub:
            assert await stub.ready(5.0)
            assert await stub.model_ready("identity", "1", timeout_s=5.0)
            assert not await stub.model_ready("nope", timeout_s=5.0)
            assert await stub.models(5.0) == ("broken", "identity", "linear", "timed")
            (model,) = await stub.served("identity", timeout_s=5.0)
        assert (model.name, model.version, model.max_batch_size) == ("identity", "1", 1024)
        assert model.inputs == (TensorSpec("INPUT0", "FP32", (32,)),)
        assert model.outputs == (TensorSpec("OUTPUT0", "FP32", (32,)),)

    asyncio.run(check())


def test_rows_go_there_and_back_and_are_counted(pair: list[Server]) -> None:
    async def check() -> None:
        async with connected(pair[0].address) as stub:
            before = await stub.load(5.0)
            outputs = await stub.infer("identity", "1", {"INPUT0": X}, ["OUTPUT0"], timeout_s=5.0, rows=64)
            with pytest.raises(InferenceError, match="this model breaks"):
                await stub.infer("broken", "1", {"INPUT0": X[:, :4].copy()}, ["OUTPUT0"], timeout_s=5.0)
            after = await stub.load(5.0)
            while after.requests < before.requests + 2:  # it answers first, and counts then
                after = await stub.load(5.0)
        np.testing.assert_array_equal(outputs["OUTPUT0"], X)
        assert after.rows - before.rows == 64
        assert (after.requests - before.requests, after.failures - before.failures) == (2, 1)
        assert after.compute_ms > before.compute_ms

    asyncio.run(check())


def test_refusals_are_told_apart(pair: list[Server]) -> None:
    async def check() -> None:
        async with connected(pair[0].address) as stub:
            with pytest.raises(RejectedError, match=r"batch-size must be <= 1024.*model identity, server 127"):
                await stub.infer("identity", "1", {"INPUT0": np.zeros((2000, 32), "f4")}, ["OUTPUT0"], timeout_s=5.0)
            with pytest.raises(ModelNotFoundError, match="version 7 is not found"):
                await stub.infer("identity", "7", {"INPUT0": X}, ["OUTPUT0"], timeout_s=5.0)
            with pytest.raises(ModelNotFoundError, match="'nope' is not found"):
                await stub.served("nope", timeout_s=5.0)

    asyncio.run(check())


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_wall_clock_that_is_set_while_a_request_is_made_neither_ends_nor_prolongs_it(
    pair: list[Server], monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)  # what C reads a moment later is another one

    async def check() -> None:
        async with connected(pair[0].address) as stub:
            assert await stub.ready(5.0)
            outputs = await stub.infer("identity", "1", {"INPUT0": X}, ["OUTPUT0"], timeout_s=5.0, rows=64)
            np.testing.assert_array_equal(outputs["OUTPUT0"], X)
            with pytest.raises(DeadlineError, match=r"did not answer in time: no answer in 0.001 s"):
                await stub.infer("timed", "1", {"INPUT0": X[:, :4].copy()}, ["OUTPUT0"], timeout_s=0.001)

    asyncio.run(check())


def test_nobody_there_is_not_ready() -> None:
    async def check() -> None:
        async with connected("127.0.0.1:1") as stub:
            assert not await stub.ready(5.0)
            with pytest.raises(InferenceError, match="cannot be reached"):
                await stub.infer("identity", "1", {"INPUT0": X}, ["OUTPUT0"], timeout_s=5.0)

    asyncio.run(check())
