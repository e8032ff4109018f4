"""What a physicist does with a model, against two real servers: each way in, each way it can be wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any

import awkward as ak
import numpy as np
import onnxruntime
import pytest
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory, PFNanoAODSchema
from coffea.nanoevents.trace import trace
from coffea.processor import IterativeExecutor, ProcessorABC, Runner
from typing_extensions import override

import sonic_parsl as sonic
from sonic_parsl.errors import (
    DeadlineError,
    InferenceError,
    InputError,
    ModelNotFoundError,
    ResponseError,
)
from sonic_parsl.executors.site import Site
from sonic_parsl.report import Report
from sonic_parsl.workflows import btag_inputs, samples, shape_demo_inputs
from tests.live.conftest import PACKAGED, SERVICE_S

pytestmark = pytest.mark.usefixtures("site")

Array = np.ndarray[Any, Any]
TAGGER = sonic.Model("btag", inputs=btag_inputs.FEATURES, outputs=btag_inputs.CLASSES)
SHAPES = sonic.Model(
    "shape_demo",
    inputs={
        "pf_features": sonic.Padded(shape_demo_inputs.FEATURES, length=shape_demo_inputs.LENGTH),
        "pf_mask": sonic.Mask("pt", length=shape_demo_inputs.LENGTH),
    },
    outputs={"scores": shape_demo_inputs.CLASSES},
)
IDENTITY = sonic.Model("identity", outputs=[f"x{i}" for i in range(32)])
SLOW = sonic.Model("slow", inputs=["a", "b", "c", "d"], outputs=["a", "b", "c", "d"])
TWICE: dict[str, Any] = {"inputs": ["a", "b"], "outputs": ["a", "b"]}
MUCH_LATER_S = 60.0
"""Long after anything here is done, on however busy a machine."""


class Quiet(NanoAODSchema):  # type: ignore[misc]
    warn_missing_crossrefs = False


class QuietPF(PFNanoAODSchema):  # type: ignore[misc]
    warn_missing_crossrefs = False


def read(name: str, schema: Any = Quiet) -> ak.Array:
    return NanoEventsFactory.from_root({str(samples.path(name)): "Events"}, schemaclass=schema, mode="virtual").events()


@pytest.fixture
def jets() -> ak.Array:
    return read("nano_tt_v12").Jet


def in_process(model: str, tensors: dict[str, Array]) -> Array:
    """Scores of ONNX Runtime in this process, shape (rows, classes)."""
    session = onnxruntime.InferenceSession(PACKAGED / model / "1" / "model.onnx")
    return np.asarray(session.run(["scores"], {name: x.astype(np.float32) for name, x in tensors.items()})[0])


def features(jets: ak.Array) -> Array:
    return np.stack([ak.to_numpy(jets[name]) for name in btag_inputs.FEATURES], axis=1)


def stacked(scores: ak.Array) -> Array:
    return np.stack([ak.to_numpy(scores[name]) for name in scores.fields], axis=1)


@contextmanager
def counted(site: Site) -> Iterator[Callable[[], dict[str, int]]]:
    """Tell what the calls in the block did, as the site's report has it."""
    before = _counts(site.report())
    yield lambda: {name: value - before[name] for name, value in _counts(site.report()).items()}


def _counts(report: Report) -> dict[str, int]:
    return {name: getattr(report, name) for name in ("rows", "requests", "retries", "rows_padded")}


# Ways in -----------------------------------------------------------------------


def test_flat_jets(site: Site, jets: ak.Array) -> None:
    flat = ak.flatten(jets)
    with counted(site) as counts:
        scores = TAGGER(flat)
        assert str(scores.type) == "1504 * {b: float32, c: float32, light: float32}"
        np.testing.assert_allclose(stacked(scores), in_process("btag", {"features": features(flat)}), atol=1e-6)
    assert counts() == {"rows": 1504, "requests": 2, "retries": 0, "rows_padded": 0}


def test_jets_in_events_keep_their_events(jets: ak.Array) -> None:
    jets["btag"] = TAGGER(jets)
    kept = jets[(jets.pt > 30) & (jets.btag.b > 0.2)]
    assert 0 < ak.sum(ak.num(kept)) < 1504
    flat = ak.flatten(kept)
    np.testing.assert_allclose(stacked(flat.btag), in_process("btag", {"features": features(flat)}), atol=1e-6)


@pytest.mark.filterwarnings("ignore:Branch Photon_.* already exists:RuntimeWarning")
def test_candidates_in_jets_in_events_are_padded_and_masked() -> None:
    candidates = read("pfnano", QuietPF).Jet.constituents.pf
    scores = SHAPES(candidates)
    flat = ak.flatten(candidates)
    padded = [
        ak.to_numpy(ak.fill_none(ak.pad_none(flat[name], shape_demo_inputs.LENGTH, clip=True), 0))
        for name in shape_demo_inputs.FEATURES
    ]
    mask = np.arange(shape_demo_inputs.LENGTH) < ak.to_numpy(ak.num(flat))[:, None]
    right = in_process("shape_demo", {"pf_features": np.stack(padded, axis=1), "pf_mask": mask[:, None]})
    assert ak.num(scores).to_list() == ak.num(candidates).to_list()
    np.testing.assert_allclose(stacked(ak.flatten(scores)), right, atol=1e-6)


@pytest.mark.parametrize("named", [True, False])
def test_numpy_arrays(jets: ak.Array, named: bool) -> None:
    x = features(ak.flatten(jets))
    scores = TAGGER({"features": x} if named else x)
    np.testing.assert_allclose(stacked(scores), in_process("btag", {"features": x}), atol=1e-6)


def test_a_function_makes_the_tensors(jets: ak.Array) -> None:
    def prepare(rows: ak.Array) -> dict[str, ak.Array]:
        columns = [ak.values_astype(rows[name], np.float32) for name in btag_inputs.FEATURES]
        return {"features": ak.concatenate([column[:, np.newaxis] for column in columns], axis=1)}

    scores = sonic.Model("btag", inputs=prepare, outputs=btag_inputs.CLASSES)(jets)
    right = in_process("btag", {"features": features(ak.flatten(jets))})
    np.testing.assert_allclose(stacked(ak.flatten(scores)), right, atol=1e-6)


def test_without_rows_no_request_is_made_and_the_types_are_right(site: Site, jets: ak.Array) -> None:
    with counted(site) as counts:
        for scores in (TAGGER(jets[jets.pt > 1e6]), TAGGER(jets[:0], lazy=False), TAGGER.submit(jets[:0]).result(0)):
            assert str(scores.type) == f"{len(scores)} * var * {{b: float32, c: float32, light: float32}}"
        assert TAGGER(np.empty((0, 12))).b.to_numpy().dtype == np.float32
    assert set(counts().values()) == {0}


def test_tracing_finds_the_columns_and_makes_no_request(site: Site) -> None:
    def process(events: ak.Array) -> ak.Array:
        jets = events.Jet
        jets["btag"] = TAGGER(jets)
        return ak.sum(jets[jets.btag.b > 0.5].phi)

    with counted(site) as counts:
        touched = trace(process, read("nano_tt_v12"))
    assert touched == {"nJet", "Jet_phi", *(f"Jet_{name}" for name in btag_inputs.FEATURES)}
    assert set(counts().values()) == {0}


def test_missing_numbers_are_an_error_that_names_the_field_unless_a_fill_value_is_given() -> None:
    rows = ak.Array([{"a": 1.0, "b": None}, {"a": None, "b": 4.0}])
    with pytest.raises(InputError, match="Field 'a' misses 1 of 2 values"):
        sonic.Model("twice", **TWICE)(rows)
    scores = sonic.Model("twice", **TWICE, fill={"a": -1.0, "b": 0.5})(rows)
    assert scores.to_list() == [{"a": 2.0, "b": 1.0}, {"a": -2.0, "b": 8.0}]


def test_a_cast_to_whole_numbers_keeps_every_value_or_is_an_error() -> None:
    whole = sonic.Model("whole", inputs=["a", "b"], outputs=sonic.Output(["a", "b"], dtype="int32"))
    assert whole(ak.Array([{"a": 3.0, "b": -7}])).to_list() == [{"a": 3, "b": -7}]
    for wrong in (2.5, 3e9, float("nan")):
        with pytest.raises(InputError, match=r"Field 'a' holds .* which int32, the model's type, cannot hold.*whole"):
            whole(ak.Array([{"a": wrong, "b": 1}]))


# When an answer is there ---------------------------------------------------------


def test_a_call_returns_at_once_and_the_read_waits() -> None:
    SLOW(np.zeros((1, 4)), lazy=False)  # the session is there from here on
    rows = np.arange(10 * 64 * 4).reshape(10 * 64, 4)  # ten requests, five for each server
    start = time.monotonic()
    scores = SLOW(rows)
    sent_s = time.monotonic() - start
    np.testing.assert_array_equal(scores.a, rows[:, 0])
    read_s = time.monotonic() - start
    assert sent_s < 3 * SERVICE_S < 5 * SERVICE_S <= read_s


def test_an_answer_that_is_not_lazy_is_there_when_the_call_returns() -> None:
    start = time.monotonic()
    scores = SLOW(np.ones((2, 4)), lazy=False)
    assert time.monotonic() - start >= SERVICE_S
    assert isinstance(scores.layout.content("a").data, np.ndarray)


def test_several_futures_are_under_way_together_and_keep_their_rows_apart() -> None:
    start = time.monotonic()
    futures = [SLOW.submit(np.full((3, 4), i)) for i in range(6)]
    assert time.monotonic() - start < 6 * SERVICE_S
    done, pending = wait(futures, timeout=MUCH_LATER_S)
    assert (len(done), len(pending)) == (6, 0)
    assert [future.result().d.to_list() for future in futures] == [[i] * 3 for i in range(6)]


def test_a_call_beyond_the_batch_size_is_split_and_comes_back_in_order(site: Site) -> None:
    x = np.arange(5000 * 32, dtype=np.float32).reshape(5000, 32)
    with counted(site) as counts:
        np.testing.assert_array_equal(stacked(IDENTITY(x)), x)
    assert counts() == {"rows": 5000, "requests": 5, "retries": 0, "rows_padded": 0}


def test_a_deadline_that_is_over_is_said_with_model_and_servers() -> None:
    hasty = sonic.Model("slow", outputs=["a", "b", "c", "d"], deadline_s=SERVICE_S / 3)
    with pytest.raises(DeadlineError, match=r"time is over after 1 attempts at 1 requests.*slow version 1"):
        hasty(np.ones((2, 4)), lazy=False)


# Which model ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "factor"),
    [({}, 2.0), ({"version": "1"}, 1.0), ({"version": "2"}, 2.0), ({"tags": ["run2"]}, 1.0), ({"tags": ["new"]}, 2.0)],
)
def test_a_version_is_chosen_by_name_or_tags_and_is_the_newest_otherwise(which: dict[str, Any], factor: float) -> None:
    scores = sonic.Model("twice", **TWICE, **which)(np.array([[1.0, 10.0]]))
    assert scores.to_list() == [{"a": factor, "b": 10 * factor}]


@pytest.mark.parametrize(
    ("name", "which", "asked"),
    [
        ("nope", {}, r"'nope'"),
        ("twice", {"version": "3"}, r"'twice' version 3"),
        ("twice", {"tags": ["run2", "new"]}, r"'twice' tag new tag run2"),
    ],
)
def test_what_nobody_serves_is_said_at_once_with_what_there_is(name: str, which: dict[str, Any], asked: str) -> None:
    known = (
        r"broken version 1, btag version 1, .*twice version 1 \[run2\], twice version 2 \[run3, new\], whole version 1"
    )
    with pytest.raises(ModelNotFoundError, match=rf"No server of the pool has model {asked}\. They have: {known}\."):
        sonic.Model(name, **TWICE, **which)(np.ones((1, 2)))


# What went wrong -------------------------------------------------------------------


def test_other_classes_than_the_servers_are_an_error_at_the_read() -> None:
    scores = sonic.Model("twice", outputs=["a", "b", "c"])(np.ones((4, 2)))
    with pytest.raises(
        ResponseError, match=r"shape \(4, 2\) and type float32; declared were 4 rows of 3 float32.*twice"
    ):
        scores.a.to_numpy()


def test_a_wrong_shape_is_refused_before_it_is_sent(site: Site) -> None:
    with counted(site) as counts, pytest.raises(InputError, match=r"takes rows of shape \(2,\).*\(3,\).*model twice"):
        sonic.Model("twice", **TWICE)(np.ones((4, 3)))
    assert counts()["requests"] == 0


class Fails(ProcessorABC):  # type: ignore[misc]
    """Reads scores that do not come."""

    def __init__(self, model: sonic.Model) -> None:
        self.model = model

    @override
    def process(self, events: Any) -> dict[str, Any]:
        return {"sum": float(ak.sum(self.model(events[:5].Jet).a)), "events": len(events)}

    @override
    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        return accumulator


FIELDS = ["pt", "eta", "phi", "mass"]
BREAKS = Fails(sonic.Model("broken", inputs=FIELDS[:2], outputs=["a", "b"]))
IS_LATE = Fails(sonic.Model("slow", inputs=FIELDS, outputs=["a", "b", "c", "d"], deadline_s=SERVICE_S / 3))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("processor", "message", "context", "skipbadfiles"),
    [
        (BREAKS, "this model breaks on every input", {"model", "server", "request"}, False),
        (BREAKS, "this model breaks on every input", {"model", "server", "request"}, True),
        (IS_LATE, "The call's time is over after 1 attempts", {"model"}, True),
    ],
    ids=["broken", "broken-skipbadfiles", "late-skipbadfiles"],
)
@pytest.mark.parametrize("executor", ["parsl", "iterative"])
def test_an_error_in_process_stops_the_run_and_says_where(
    site: Site, executor: str, processor: Fails, message: str, context: set[str], skipbadfiles: bool
) -> None:
    fields = {"status": False, "retries": 0}
    chosen = site.coffea_executor(**fields) if executor == "parsl" else IterativeExecutor(**fields)
    runner = Runner(executor=chosen, schema=Quiet, skipbadfiles=skipbadfiles)
    with pytest.raises(Exception, match=message) as caught:
        runner({"tt": {"files": {str(samples.path("nano_tt_v12")): "Events"}}}, processor)
    errors = list(chain(caught.value))
    assert not [error for error in errors if isinstance(error, OSError)]
    ours = next(error for error in errors if isinstance(error, InferenceError))
    assert ours.context.keys() == context | ({"file", "chunk"} if executor == "parsl" else set())
    assert ours.context["model"] == f"{processor.model.name} version 1"
