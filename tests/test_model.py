"""The handle: lazy scores with the jets' own jaggedness, on real NanoAOD jets."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import weakref
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import awkward as ak
import cloudpickle
import numpy as np
import onnxruntime
import pytest
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory, PFNanoAODSchema
from coffea.nanoevents.trace import trace

from sonic_parsl import workflows
from sonic_parsl.client.call import Call, Ledger
from sonic_parsl.columns import Mask, Output, Padded
from sonic_parsl.errors import (
    ConfigError,
    DeadlineError,
    InferenceError,
    InputError,
    PoolNotFoundError,
    ResponseError,
    SonicError,
)
from sonic_parsl.kserve import DATATYPES
from sonic_parsl.model import Model, Scores, Service, ask
from sonic_parsl.poolref import POOL_ENV
from sonic_parsl.protocol import ServedModel, TensorSpec
from sonic_parsl.workflows import btag_inputs, samples, shape_demo_inputs
from tests.leaks import wait_until

Array = np.ndarray[Any, Any]
MODELS = Path(workflows.__file__).parent / "models"
ORT_TYPES = {"tensor(float)": "FP32", "tensor(double)": "FP64"}


class InProcess:
    """Scores with ONNX Runtime in this process, once `gate` is open."""

    def __init__(self, name: str, threads: ThreadPoolExecutor) -> None:
        self.onnx = onnxruntime.InferenceSession(MODELS / name / "1" / "model.onnx")
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[Call] = []
        self.failure: SonicError | None = None
        self._name, self._threads = name, threads

    def served(self, name: str, *, version: str | None, tags: Collection[str], deadline_s: float) -> ServedModel:
        assert (name, version, tags, deadline_s) == (self._name, None, (), 300.0)
        inputs, outputs = (
            tuple(TensorSpec(t.name, ORT_TYPES[t.type], tuple(t.shape[1:])) for t in tensors)
            for tensors in (self.onnx.get_inputs(), self.onnx.get_outputs())
        )
        return ServedModel(name, "1", 1024, inputs, outputs)

    def submit(self, model: ServedModel, tensors: Mapping[str, Array], *, rows: int, deadline_s: float) -> Call:
        assert 0 < deadline_s <= 300
        for spec in model.inputs:
            assert DATATYPES[tensors[spec.name].dtype] == spec.datatype
        call = Call(Ledger(model, rows, 1), "7")
        self.calls.append(call)
        self._threads.submit(self._answer, call, dict(tensors))
        return call

    def _answer(self, call: Call, tensors: dict[str, Array]) -> None:
        self.gate.wait(60)
        names = [spec.name for spec in call.ledger.model.outputs]
        call.finish(self.failure or dict(zip(names, self.onnx.run(names, tensors), strict=True)))


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def btag(threads: ThreadPoolExecutor) -> Iterator[InProcess]:
    service = InProcess("btag", threads)
    yield service
    service.gate.set()


def nobody() -> Service:
    pytest.fail("a server was looked for")


class Quiet(NanoAODSchema):  # type: ignore[misc]
    warn_missing_crossrefs = False


class QuietPF(PFNanoAODSchema):  # type: ignore[misc]
    warn_missing_crossrefs = False


def read(name: str, schema: Any = Quiet) -> ak.Array:
    return NanoEventsFactory.from_root({str(samples.path(name)): "Events"}, schemaclass=schema, mode="virtual").events()


@pytest.fixture
def events() -> ak.Array:
    return read("nano_tt_v12")


TAGGER = Model("btag", inputs=btag_inputs.FEATURES, outputs=btag_inputs.CLASSES)


def expected(service: InProcess, jets: ak.Array, name: str) -> Array:
    features = np.stack([ak.to_numpy(ak.flatten(jets[field])) for field in btag_inputs.FEATURES], axis=1)
    scores = service.onnx.run(["scores"], {"features": features.astype(np.float32)})[0]
    return np.asarray(scores[:, btag_inputs.CLASSES.index(name)])


# Jets of real events ---------------------------------------------------------


def test_scores_stay_lazy_through_a_selection_and_are_right_when_read(events: ak.Array, btag: InProcess) -> None:
    btag.gate.clear()
    jets = events.Jet[events.Jet.pt > 30]
    jets["btag"] = ask(TAGGER, jets, lambda: btag)[0]
    central = jets[abs(jets.eta) < 2.5]
    busy = central[ak.num(central) >= 2]
    ordered = busy[ak.argsort(busy.pt, ascending=True)]
    leading = ak.firsts(ordered)
    together = ak.concatenate([ordered, busy])
    assert ordered.btag.fields == ["b", "c", "light"]
    assert not btag.calls[0].done()
    btag.gate.set()
    np.testing.assert_allclose(ak.flatten(ordered.btag.b), expected(btag, ordered, "b"), atol=1e-6)
    np.testing.assert_allclose(ak.to_numpy(leading.btag.c), expected(btag, ordered[:, :1], "c"), atol=1e-6)
    np.testing.assert_allclose(ak.flatten(together.btag.light), expected(btag, together, "light"), atol=1e-6)
    assert len(btag.calls) == 1
    assert str(jets.btag.type) == "200 * var * {b: float32, c: float32, light: float32}"
    assert type(ordered).__name__ == "JetArray"


def test_scores_can_be_used_like_any_column(events: ak.Array, btag: InProcess) -> None:
    jets = events.Jet
    scores, _ = ask(TAGGER, jets, lambda: btag)
    right = expected(btag, jets, "b")
    np.testing.assert_array_equal(ak.to_numpy(ak.flatten(scores)["b"]), right)
    for copy in (pickle.loads(pickle.dumps(scores)), cloudpickle.loads(cloudpickle.dumps(scores))):
        np.testing.assert_array_equal(ak.flatten(copy.b), right)
    np.testing.assert_allclose(ak.flatten(scores.b + scores.c + scores.light), 1, rtol=1e-5)
    best = ak.max(scores.b, axis=1)
    assert len(best) == len(events)


def test_scores_can_be_read_in_numba(btag: InProcess) -> None:
    numba = pytest.importorskip("numba")

    @numba.njit  # type: ignore[untyped-decorator]
    def total(scores: Any) -> float:
        result = 0.0
        for event in scores:
            for jet in event:
                result += jet.b
        return result

    jets = read("nano_tt_v12").Jet
    scores, _ = ask(TAGGER, jets, lambda: btag)
    assert total(ak.materialize(scores)) == pytest.approx(float(expected(btag, jets, "b").sum(dtype=float)))


def test_jets_can_be_flat(events: ak.Array, btag: InProcess) -> None:
    jets = ak.flatten(events.Jet)
    scores, _ = ask(TAGGER, jets, lambda: btag)
    assert str(scores.type) == "1504 * {b: float32, c: float32, light: float32}"
    np.testing.assert_array_equal(scores.c, expected(btag, events.Jet, "c"))


@pytest.mark.filterwarnings("ignore:Branch Photon_.* already exists:RuntimeWarning")
def test_padded_candidates_of_real_jets(threads: ThreadPoolExecutor) -> None:
    service = InProcess("shape_demo", threads)
    candidates = read("pfnano", QuietPF).Jet.constituents.pf
    model = Model(
        "shape_demo",
        inputs={
            "pf_features": Padded(shape_demo_inputs.FEATURES, length=shape_demo_inputs.LENGTH),
            "pf_mask": Mask("pt", length=shape_demo_inputs.LENGTH),
        },
        outputs=shape_demo_inputs.CLASSES,
    )
    scores, _ = ask(model, candidates, lambda: service)
    columns = [
        ak.to_numpy(ak.fill_none(ak.pad_none(ak.flatten(candidates[name]), shape_demo_inputs.LENGTH, clip=True), 0))
        for name in shape_demo_inputs.FEATURES
    ]
    counts = ak.to_numpy(ak.num(ak.flatten(candidates)))
    right = service.onnx.run(
        ["scores"],
        {
            "pf_features": np.stack(columns, axis=1).astype(np.float32),
            "pf_mask": (np.arange(shape_demo_inputs.LENGTH) < counts[:, None])[:, None].astype(np.float32),
        },
    )[0]
    assert counts.max() > shape_demo_inputs.LENGTH > counts.min()
    assert ak.num(scores).to_list() == ak.num(candidates).to_list()
    np.testing.assert_array_equal(ak.flatten(scores.s1), np.asarray(right)[:, 1])


def test_tracing_finds_the_columns_and_contacts_nobody(events: ak.Array) -> None:
    def process(events: ak.Array) -> ak.Array:
        jets = events.Jet[events.Jet["pt"] > 30]
        jets["btag"], call = ask(TAGGER, jets, nobody)
        assert call is None
        assert str(jets.btag.type) == "## * var * {b: float32, c: float32, light: float32}"
        return ak.sum(jets[jets.btag.b > 0.5]["phi"])

    touched = trace(process, events)
    assert touched == {"nJet", "Jet_phi", *(f"Jet_{name}" for name in btag_inputs.FEATURES)}


def test_a_processor_without_jets_asks_nobody(events: ak.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POOL_ENV, raising=False)
    for jets in (events.Jet[events.Jet.pt > 1e6], events.Jet[:0]):
        for scores in (TAGGER(jets), TAGGER(jets, lazy=False), TAGGER.submit(jets).result(0)):
            assert str(scores.type) == f"{len(jets)} * var * {{b: float32, c: float32, light: float32}}"
            assert ak.num(scores).to_list() == ak.num(jets).to_list()
    assert str(TAGGER(np.empty((0, 12))).type) == "0 * {b: float32, c: float32, light: float32}"


def test_without_a_pool_the_call_itself_fails(events: ak.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POOL_ENV, raising=False)
    with pytest.raises(PoolNotFoundError, match="was not told of a pool"):
        TAGGER(events.Jet)


# Other inputs ------------------------------------------------------------------


def test_numpy_arrays_give_a_flat_record(btag: InProcess) -> None:
    x = np.random.default_rng(1).normal(size=(5, 12))
    right = btag.onnx.run(["scores"], {"features": x.astype(np.float32)})[0]
    model = Model("btag", outputs=btag_inputs.CLASSES)
    for arrays in (x, {"features": x}):
        scores, _ = ask(model, arrays, lambda: btag)
        np.testing.assert_array_equal(scores.light, np.asarray(right)[:, 2])


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (ak.Array([{"pt": 1.0}])[0], "takes awkward or numpy arrays, not Record"),
        ([1.0], "takes awkward or numpy arrays, not list"),
        (ak.Array([{"pt": 1.0}]), "has no field 'eta'"),
        (np.zeros((2, 3)), r"Tensor 'features' takes rows of shape \(12,\), the input has rows of shape \(3,\)"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_and_the_model_named(array: Any, complaint: str, btag: InProcess) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        ask(TAGGER, array, lambda: btag)
    assert caught.value.context == {"model": "btag"}
    assert not btag.calls


def test_a_model_without_inputs_takes_no_records() -> None:
    with pytest.raises(InputError, match="was made without inputs"):
        ask(Model("btag", outputs="b"), ak.Array([{"pt": 1.0}]), nobody)


# Answers that fail ------------------------------------------------------------


def test_a_failed_call_raises_at_each_read_and_nowhere_else(events: ak.Array, btag: InProcess) -> None:
    btag.failure = InferenceError("The server burned down.", model="btag version 1", chunk="7")
    scores, _ = ask(TAGGER, events.Jet, lambda: btag)
    kept = scores[events.Jet.pt > 30]
    for _ in range(2):
        with pytest.raises(InferenceError, match="The server burned down"):
            ak.to_numpy(ak.flatten(kept.b))


@pytest.mark.parametrize(
    "outputs",
    [["b", "c"], "b", Output(["b", "c", "light"], "float64"), {"scores": Output(["b", "c", "light"], "int32")}],
)
def test_other_outputs_than_the_servers_are_an_error_at_the_read(outputs: Any, btag: InProcess) -> None:
    jets = read("nano_tt_v12").Jet
    scores, _ = ask(Model("btag", inputs=btag_inputs.FEATURES, outputs=outputs), jets, lambda: btag)
    with pytest.raises(
        ResponseError, match=r"'scores' has shape \(1504, 3\) and type float32; declared were"
    ) as caught:
        ak.sum(scores.b)
    assert caught.value.context == {"model": "btag version 1", "chunk": "7"}


# Futures -----------------------------------------------------------------------


def submit(btag: InProcess, rows: int = 5) -> Scores:
    return Scores(*ask(TAGGER, np.zeros((rows, 12)), lambda: btag))


def test_futures_wait_together(btag: InProcess) -> None:
    futures = [submit(btag, rows) for rows in (3, 4)]
    assert sorted(len(future.result()) for future in as_completed(futures, timeout=60)) == [3, 4]

    async def gather() -> list[ak.Array]:
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    assert [len(scores) for scores in asyncio.run(gather())] == [3, 4]
    assert all(future.exception() is None for future in futures)


def test_a_future_that_nobody_holds_ends_and_is_freed(btag: InProcess) -> None:
    btag.gate.clear()
    told: list[int] = []
    gc.disable()  # not only by a collection
    try:
        alive: list[weakref.ref[Any]] = []
        for rows in (3, 4):
            future = submit(btag, rows)
            future.add_done_callback(lambda done: told.append(len(done.result())))
            alive += [weakref.ref(future), weakref.ref(btag.calls.pop())]
            del future
        btag.gate.set()
        wait_until(lambda: not any(ref() for ref in alive), 60)
    finally:
        gc.enable()
    assert sorted(told) == [3, 4]


def test_a_future_tells_what_the_call_failed_with(btag: InProcess) -> None:
    btag.failure = InferenceError("The server burned down.")
    future = submit(btag)
    with pytest.raises(InferenceError, match="burned down"):
        future.result(60)
    assert isinstance(future.exception(60), InferenceError)


def test_a_future_that_is_not_done_in_time_is_no_oserror(btag: InProcess) -> None:
    btag.gate.clear()
    future = submit(btag)
    for wait in (future.result, future.exception):
        with pytest.raises(DeadlineError, match=r"There was no result after 0.01 s"):
            wait(0.01)
    assert not future.done()


def test_a_cancelled_future_cancels_the_call(btag: InProcess) -> None:
    btag.gate.clear()
    future = submit(btag)
    assert future.cancel()
    assert future.cancelled()
    assert btag.calls[0].cancelled()
    with pytest.raises(InferenceError, match="was cancelled before its result came"):
        future.result()
    btag.gate.set()
    done = submit(btag)
    assert len(done.result(60)) == 5
    assert not done.cancel()


# The handle itself ---------------------------------------------------------------


def test_models_are_values() -> None:
    same = Model("btag", inputs=list(btag_inputs.FEATURES), outputs=list(btag_inputs.CLASSES))
    assert same == TAGGER
    assert hash(same) == hash(TAGGER)
    assert pickle.loads(pickle.dumps(TAGGER)) == TAGGER
    assert Model("btag", inputs=["pt"], outputs="b", version="2") != Model("btag", inputs=["pt"], outputs="b")
    assert Model("btag", outputs="b", tags=["x", "a"]) == Model("btag", outputs="b", tags=("a", "x"))
    assert repr(TAGGER) == "Model('btag', outputs=['b', 'c', 'light'])"
    assert repr(Model("m", outputs="b", version="2")) == "Model('m', version='2', outputs=['b'])"


def test_a_model_with_a_function_travels_with_cloudpickle(btag: InProcess) -> None:
    model = Model("btag", inputs=lambda rows: {"features": ak.to_numpy(rows.x)}, outputs=btag_inputs.CLASSES)
    copy = cloudpickle.loads(cloudpickle.dumps(model))
    scores, _ = ask(copy, ak.zip({"x": np.zeros((4, 12))}, depth_limit=1), lambda: btag)
    assert len(ak.materialize(scores)) == 4


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": ""}, "A model's name must be a text"),
        ({"version": 2}, "A model's version must be a text, such as '1', not 2"),
        ({"tags": "prod"}, "A model's tags must be a list of texts"),
        ({"deadline_s": 0}, "must be more than 0 s, not 0"),
        ({"deadline_s": float("nan")}, "must be more than 0 s, not nan"),
        ({"outputs": []}, "Classes of an output must be names"),
        ({"inputs": []}, "Fields of a tensor must be names"),
        ({"fill": "0"}, "A fill value must be a number"),
    ],
)
def test_wrong_arguments_are_refused_when_the_model_is_made(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Model(**{"name": "btag", "inputs": ["pt"], "outputs": "b", **arguments})
