"""A model is asked once before its server is called ready: by a real Triton."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sonic_parsl.credentials import Peer
from sonic_parsl.errors import ServerStartError
from sonic_parsl.kserve import KServe
from sonic_parsl.protocol import ServedModel, TensorSpec
from sonic_parsl.server.probe import probe
from tests.server.agents import MODELS

ANSWER = 'return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("OUTPUT0", rows)])'
TWICE_AS_MANY_ROWS = ANSWER.replace(", rows)", ", rows.repeat(2, axis=0))")
STATISTICS_TRIES = 1000
NO_ZEROS = "raise ValueError('zeros are no jets') if not rows.any() else None"


@pytest.fixture(scope="module")
def server(start_triton: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a Triton whose models answer well, wrongly and not at all."""
    folder = tmp_path_factory.mktemp("probe")
    repository = folder / "repository"
    for name, answer in {"good": ANSWER, "wrong": TWICE_AS_MANY_ROWS, "picky": f"{NO_ZEROS}; {ANSWER}"}.items():
        _copy(repository / name, answer)
    with start_triton(repository, ("good", "wrong", "picky"), folder / "log") as triton:
        yield f"127.0.0.1:{triton.options.port}"


def _copy(model: Path, answer: str) -> None:
    shutil.copytree(MODELS / "identity", model)
    config, code = model / "config.pbtxt", model / "1" / "identity.py"
    config.write_text(config.read_text().replace('name: "identity"', f'name: "{model.name}"'))
    code.write_text(code.read_text().replace(ANSWER, answer))


def ask(address: str, name: str) -> int:
    """Probe a model; return how many requests that was."""

    async def scenario() -> int:
        stub = KServe(Peer(address))
        try:
            before = await stub.load(5.0)
            (model,) = await stub.served(name, timeout_s=5.0)
            await probe(stub, model, timeout_s=30.0)
            for _ in range(STATISTICS_TRIES):  # Triton counts a request after it has answered
                if counted := (await stub.load(5.0)).requests - before.requests:
                    return counted
            return 0
        finally:
            await stub.close()

    return asyncio.run(scenario())


def test_a_model_that_answers_as_it_should_is_asked_once(server: str, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(server, "good") == 1
    assert not caplog.records


def test_one_that_answers_with_other_rows_than_it_was_asked_for_is_not_served(server: str) -> None:
    with pytest.raises(
        ServerStartError, match=r"Model wrong answers its first request wrongly: .*expected were 1 rows"
    ):
        ask(server, "wrong")


def test_one_that_takes_no_zeros_is_served_with_a_warning(server: str, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(server, "picky") == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Model picky could not answer a row of zeros" in record.getMessage()
    assert "zeros are no jets" in record.getMessage()


def test_one_that_takes_texts_is_not_asked() -> None:
    model = ServedModel("texts", "1", 8, (TensorSpec("TEXT", "BYTES", (1,)),), (TensorSpec("OUT", "FP32", (1,)),))

    async def scenario() -> None:
        stub = KServe(Peer("127.0.0.1:1"))  # nobody is there to be asked
        await probe(stub, model, timeout_s=1.0)
        await stub.close()

    asyncio.run(scenario())
