"""What a process computes itself once its pool is lost: the same rows, once, in order, and marked as such."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from sonic_parsl.client.onnx_models import OnnxModels
from sonic_parsl.client.scope import Chunk, chunk_scope
from sonic_parsl.client.session import Session
from sonic_parsl.errors import DeadlineError, ModelMismatchError, PoolError, PoolLostError, RejectedError
from sonic_parsl.poolref import POOL_ENV, Fallback
from tests.client import onnx_files as onnx

if TYPE_CHECKING:
    from tests.client.conftest import Registry, Server

LOST = "no server was ready 5 s after it was asked for"
FP16_EPSILON = 2.0**-11
"""What rounding to half precision changes at most, relative: IEEE 754 binary16 has eleven significant bits."""
FP16_ROUNDINGS = 6
"""Of a sum of four products: features, weights, and what each of the additions rounds."""
TRITON_ONLY = Path(__file__).parents[1] / "models"

Open = Callable[..., Session]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository of models that ONNX Runtime can compute."""
    onnx.write(tmp_path, "linear", onnx.linear(), onnx.ROW)
    onnx.write(tmp_path, "timed", onnx.same("INPUT0", "OUTPUT0", "n", 4), onnx.TIMED)
    onnx.write(tmp_path, "number", onnx.same("x", "y", "n"), onnx.NUMBER)
    onnx.write(tmp_path, "whole", onnx.linear(), onnx.ROW.replace("dims: [", "dims: [-1, "), max_batch_size=0)
    return tmp_path


@pytest.fixture
def open_session(registry: Registry) -> Iterator[Open]:
    """Open sessions whose pool allows a fallback."""
    opened: list[Session] = []

    def one(fallback: Fallback) -> Session:
        opened.append(Session(replace(registry.ref, fallback=fallback)))
        return opened[-1]

    yield one
    for session in opened:
        session.close()


def features(rows: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)


def ask(session: Session, name: str, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    model = session.served(name)
    call = session.submit(model, {model.inputs[0].name: x}, rows=len(x))
    return call.result(60)[model.outputs[0].name]


def test_a_pool_that_is_lost_is_no_end_where_a_fallback_is_allowed(
    registry: Registry, models: Path, open_session: Open
) -> None:
    registry.show(lost=LOST)
    session, x = open_session(onnx.fallback(models)), features(10_000)
    with chunk_scope(None, Chunk("file-1", 0, 7)) as scope:
        y = ask(session, "linear", x)
    assert (y.dtype.name, y.flags.writeable) == ("float32", False)
    np.testing.assert_allclose(y, x @ onnx.WEIGHTS, rtol=1e-5, atol=1e-6)
    (record,) = scope.records()
    assert (record.fallback, record.numeric_kind, record.rows, record.servers) == (True, "fp32", 10_000, {})
    assert record.source_digest
    (note,) = record.notes
    assert note.startswith("Model linear was computed by the workers themselves, in fp32")
    assert LOST in note


def test_without_a_fallback_it_is_the_end(registry: Registry, session: Session) -> None:
    registry.show(lost=LOST)
    with pytest.raises(PoolLostError, match=LOST):
        session.served("linear")


@pytest.mark.parametrize(("name", "shape"), [("number", (500, 1)), ("whole", (500, 4))])
def test_shapes_are_those_that_a_server_would_answer(
    name: str, shape: tuple[int, ...], registry: Registry, models: Path, open_session: Open
) -> None:
    registry.show(lost=LOST)
    x = features(500)[:, : shape[1]]
    right = x if name == "number" else x @ onnx.WEIGHTS
    np.testing.assert_allclose(ask(open_session(onnx.fallback(models)), name, x), right, rtol=1e-5, atol=1e-6)


def test_a_call_that_waits_for_a_first_server_goes_on_when_there_will_be_none(
    registry: Registry, models: Path, open_session: Open
) -> None:
    session, x = open_session(onnx.fallback(models)), features(3)
    answers: list[npt.NDArray[np.float32]] = []

    def wait_and_ask() -> None:
        model = session.served("linear", deadline_s=0.01)  # it is for the pool's owner to say how long to wait
        answers.append(session.submit(model, {"x": x}, rows=3).result(60)["y"])

    thread = threading.Thread(target=wait_and_ask)
    thread.start()
    assert not session.wait_for(lambda table: table.lost is not None, 0.5)
    registry.show(lost=LOST)
    thread.join(60)
    np.testing.assert_allclose(answers[0], x @ onnx.WEIGHTS, rtol=1e-5, atol=1e-6)


def test_a_call_whose_pool_is_lost_in_its_middle_is_computed_wholly(
    registry: Registry, pair: list[Server], models: Path, open_session: Open, wait_for: Callable[..., None]
) -> None:
    registry.show(*(server.entry() for server in pair))
    session, x = open_session(onnx.fallback(models)), features(64 * 400)
    with chunk_scope(None, Chunk("file-1", 0, 7)) as scope:
        call = session.submit(session.served("timed"), {"INPUT0": x}, rows=len(x))
        wait_for(lambda: scope.records()[0].servers)
        registry.show(lost=LOST)
        np.testing.assert_array_equal(call.result(60)["OUTPUT0"], x)
    (record,) = scope.records()
    assert (record.fallback, record.servers, record.calls, record.rows) == (True, {}, 1, len(x))


def test_where_nobody_starts_servers_calls_go_on_without_the_last_one_and_back_to_it(
    registry: Registry, pair: list[Server], models: Path, open_session: Open, wait_for: Callable[..., None]
) -> None:
    one, _ = pair
    registry.show(one.entry("starting"))
    session, x = open_session(replace(onnx.fallback(models), patient=False)), features(64 * 400)
    with pytest.raises(DeadlineError):
        session.served("timed", deadline_s=0.2)  # it may come yet
    registry.show(one.entry())
    with chunk_scope(None, Chunk("file-1", 0, 7)) as scope:
        call = session.submit(session.served("timed"), {"INPUT0": x}, rows=len(x))
        wait_for(lambda: scope.records()[0].servers)
        registry.show()
        np.testing.assert_array_equal(call.result(60)["OUTPUT0"], x)
        np.testing.assert_array_equal(ask(session, "timed", x), x)
    records = scope.records()
    assert all(record.fallback for record in records)
    assert sum(record.rows for record in records) == 2 * len(x)
    registry.show(one.entry())
    session.wait_for(lambda table: bool(table.ready), 60)
    with chunk_scope(None, Chunk("file-1", 7, 9)) as scope:
        np.testing.assert_array_equal(ask(session, "timed", x[:100]), x[:100])
    (record,) = scope.records()
    assert (record.fallback, set(record.servers)) == (False, {one.id})


def test_servers_that_come_back_are_asked_again(
    registry: Registry, pair: list[Server], models: Path, open_session: Open
) -> None:
    registry.show(lost=LOST)
    session, x = open_session(onnx.fallback(models)), features(5)
    ask(session, "timed", x)
    registry.show(*(server.entry() for server in pair))
    assert session.wait_for(lambda table: table.lost is None, 30)
    call = session.submit(session.served("timed"), {"INPUT0": x}, rows=5)
    assert call.result(60)["OUTPUT0"].shape == (5, 4)
    assert not call.ledger.record().fallback


def test_another_kind_of_numbers_is_refused_and_both_are_named(
    registry: Registry, pair: list[Server], models: Path, open_session: Open
) -> None:
    registry.show(pair[0].entry(numeric_kind="fp16"))
    session, x = open_session(onnx.fallback(models)), features(64 * 400)
    call = session.submit(session.served("timed"), {"INPUT0": x}, rows=len(x))
    registry.show(lost=LOST)
    with pytest.raises(
        PoolLostError, match=rf"{LOST}.*Servers count in fp16 for model timed, this process in fp32.*mix"
    ):
        call.result(60)
    with pytest.raises(ModelMismatchError, match=r"fp16.*fp32"):
        session.served("timed")


def test_it_is_allowed_where_the_site_says_so(
    registry: Registry, pair: list[Server], models: Path, open_session: Open
) -> None:
    registry.show(pair[0].entry(numeric_kind="fp16"))
    session, x = open_session(onnx.fallback(models, mix_numerics=True)), features(64 * 400)
    call = session.submit(session.served("timed"), {"INPUT0": x}, rows=len(x))
    registry.show(lost=LOST)
    np.testing.assert_array_equal(call.result(60)["OUTPUT0"], x)
    assert call.ledger.record().numeric_kind == "fp32"


def test_numbers_of_two_kinds_differ_by_no_more_than_the_coarser_may(
    registry: Registry, pair: list[Server], models: Path, open_session: Open
) -> None:
    """The server computes in half precision, this process in single precision."""
    registry.show(pair[0].entry(numeric_kind="fp16"))
    session, x = open_session(onnx.fallback(models, mix_numerics=True)), features(10_000)
    exact, magnitude = x @ onnx.WEIGHTS, np.abs(x) @ np.abs(onnx.WEIGHTS)
    half = session.submit(session.served("linear"), {"x": x}, rows=len(x))
    far = np.abs(half.result(60)["y"] - exact)
    assert np.all(far <= FP16_ROUNDINGS * FP16_EPSILON * magnitude)
    assert np.max(far) > 1e-4, "this server does not count in half precision"
    registry.show(lost=LOST)
    single = session.submit(session.served("linear"), {"x": x}, rows=len(x))
    np.testing.assert_allclose(single.result(60)["y"], exact, rtol=1e-5, atol=1e-6)
    assert [call.ledger.record().numeric_kind for call in (half, single)] == ["fp16", "fp32"]


def test_another_model_of_the_same_name_is_refused(
    registry: Registry, pair: list[Server], models: Path, open_session: Open
) -> None:
    registry.show(pair[0].entry(source_digest="0" * 64))
    session, x = open_session(onnx.fallback(models)), features(64 * 400)
    call = session.submit(session.served("timed"), {"INPUT0": x}, rows=len(x))
    registry.show(lost=LOST)
    with pytest.raises(PoolLostError, match="have different models under the name timed version 1"):
        call.result(60)


def without_the_folder(models: Path) -> None:
    models.joinpath("linear").rename(models / "moved")


def changed(models: Path) -> None:
    models.joinpath("linear/config.pbtxt").write_text(f'backend: "onnxruntime" max_batch_size: 8 {onnx.ROW}')


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            without_the_folder,
            r"does not see .*/linear, the folder of model linear. .*Put the model repository where all",
        ),
        (changed, "was changed after the pool was started"),
    ],
)
def test_what_keeps_a_process_from_computing_is_said_beside_what_happened_to_the_pool(
    spoil: Callable[[Path], None], sentence: str, registry: Registry, models: Path, open_session: Open
) -> None:
    fallback = onnx.fallback(models)
    spoil(models)
    registry.show(lost=LOST)
    with pytest.raises(PoolLostError, match=f"{LOST}.*Nor can this process compute the model.*{sentence}"):
        open_session(fallback).served("linear")


def test_a_model_that_only_a_server_can_run_is_a_sentence(registry: Registry, open_session: Open) -> None:
    registry.show(lost=LOST)
    with pytest.raises(PoolLostError, match=r"is one of Triton's backend 'python'; .* only ONNX models"):
        open_session(onnx.fallback(TRITON_ONLY)).served("timed")


def test_a_model_that_no_group_has_is_a_sentence(registry: Registry, models: Path, open_session: Open) -> None:
    registry.show(lost=LOST)
    with pytest.raises(PoolLostError, match=r"has the model 'other'\. .*They have: linear, number, timed, whole"):
        open_session(onnx.fallback(models)).served("other")


def test_without_onnx_runtime_it_says_what_to_install(
    registry: Registry, models: Path, open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.show(lost=LOST)
    session = open_session(onnx.fallback(models))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PoolLostError, match=f"{LOST}.*needs ONNX Runtime, which .* lacks .*pip install onnxruntime"):
        session.served("linear")


def test_inputs_that_do_not_fit_are_rejected(registry: Registry, models: Path, open_session: Open) -> None:
    registry.show(lost=LOST)
    with pytest.raises(RejectedError, match=r"ONNX Runtime cannot compute it: .*linear version 1"):
        ask(open_session(onnx.fallback(models)), "linear", features(3)[:, :2])


def test_a_session_that_is_closed_ends_what_it_computes(registry: Registry, models: Path, open_session: Open) -> None:
    registry.show(lost=LOST)
    session, x = open_session(onnx.fallback(models)), features(64 * 1000)
    model = session.served("linear")
    calls = [session.submit(model, {"x": x}, rows=len(x)) for _ in range(20)]
    session.close()
    with pytest.raises(PoolError, match="was closed"):
        calls[-1].result(10)
    assert not [thread for thread in threading.enumerate() if thread.name == "sonic-parsl-local"]


FORK = """
import os
import numpy as np
import sonic_parsl as sonic

x = np.arange(400, dtype=np.float32).reshape(100, 4)
model = sonic.Model("linear", outputs=["a", "b", "c"])
right = model(x, lazy=False).to_list()
assert len(right) == 100
child = os.fork()
if child == 0:
    os._exit(0 if model(x, lazy=False).to_list() == right else 1)
assert os.waitpid(child, 0)[1] == 0
assert model(x, lazy=False).to_list() == right
model(np.zeros((1_000_000, 4), dtype=np.float32))  # not read: the process ends all the same
"""


def test_a_child_that_was_forked_computes_its_own(registry: Registry, models: Path, tmp_path: Path) -> None:
    registry.show(lost=LOST)
    replace(registry.ref, fallback=onnx.fallback(models)).write(tmp_path / "pool.json")
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        env={**os.environ, POOL_ENV: str(tmp_path / "pool.json")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_computes_in_one_thread(models: Path) -> None:
    known = OnnxModels(onnx.fallback(models))
    known.find("linear")
    (session,) = known.open("linear")._sessions.values()
    assert session.get_session_options().intra_op_num_threads == 1
