from __future__ import annotations

import queue
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpcclient
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

if TYPE_CHECKING:
    from tests.server.conftest import RunningTriton

Array = npt.NDArray[Any]
Start = Callable[..., AbstractContextManager["RunningTriton"]]

TENSORS = (
    'input [{ name: "x" data_type: TYPE_FP32 dims: [4] }] output [{ name: "scores" data_type: TYPE_FP32 dims: [3] }]'
)
DTYPES = {
    TensorProto.BOOL: ("BOOL", np.bool_),
    TensorProto.UINT8: ("UINT8", np.uint8),
    TensorProto.INT8: ("INT8", np.int8),
    TensorProto.INT32: ("INT32", np.int32),
    TensorProto.INT64: ("INT64", np.int64),
    TensorProto.FLOAT16: ("FP16", np.float16),
    TensorProto.FLOAT: ("FP32", np.float32),
    TensorProto.DOUBLE: ("FP64", np.float64),
}
RNG = np.random.default_rng(20)
WEIGHTS = numpy_helper.from_array(RNG.normal(size=(4, 3)).astype(np.float32), "weights")


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] | None = None) -> Any:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def value(name: str, dtype: int, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def tagger(rows: int | str = "jets") -> Any:
    """Four features a jet in, three scores and their largest out."""
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ReduceMax", ["scores"], ["best"], axes=[1], keepdims=0),
    ]
    outputs = [value("scores", TensorProto.FLOAT, rows, 3), value("best", TensorProto.FLOAT, rows)]
    return model(nodes, [value("x", TensorProto.FLOAT, rows, 4)], outputs, [WEIGHTS])


def lookup() -> Any:
    """Row `index` of the weights: a wrong index is an error at run time."""
    node = helper.make_node("Gather", ["weights", "index"], ["row"], axis=0)
    return model([node], [value("index", TensorProto.INT64, "n")], [value("row", TensorProto.FLOAT, "n", 3)], [WEIGHTS])


def all_dtypes() -> Any:
    """Each dtype in and out again, one of them a string."""
    kinds = {**{key: name for key, (name, _) in DTYPES.items()}, TensorProto.STRING: "BYTES"}
    nodes = [helper.make_node("Identity", [name], [f"same_{name}"]) for name in kinds.values()]
    inputs = [value(name, key, "n", 2, "m") for key, name in kinds.items()]
    return model(nodes, inputs, [value(f"same_{name}", key, "n", 2, "m") for key, name in kinds.items()])


def pooled() -> Any:
    """One number a request whatever its rows: no batch dimension to split."""
    node = helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)
    return model([node], [value("x", TensorProto.FLOAT, "n", 4)], [value("total", TensorProto.FLOAT)])


def write(repository: Path, name: str, config: str, proto: Any, *, filename: str = "model.onnx") -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    onnx.save(proto, str(folder / filename))
    (repository / name / "config.pbtxt").write_text(config)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repository")
    ours = 'backend: "onnxruntime" instance_group [{ count: 1 kind: KIND_CPU }]'
    delay = "dynamic_batching { max_queue_delay_microseconds: 300000 }"
    write(path, "complete", f"{ours} max_batch_size: 64 {TENSORS}", tagger())
    write(path, "no_sections", f"{ours} max_batch_size: 64", tagger())
    write(path, "no_outputs", f"{ours} max_batch_size: 64 {TENSORS.partition('output')[0]}", tagger())
    write(path, "bare", ours, tagger())
    write(path, "by_platform", 'platform: "onnxruntime_onnx" max_batch_size: 64', tagger())
    write(path, "named", f'{ours} max_batch_size: 8 default_model_filename: "t.onnx"', tagger(), filename="t.onnx")
    write(path, "fixed_rows", ours, tagger(rows=5))
    write(path, "pooled", ours, pooled())
    write(path, "dtypes", f"{ours} max_batch_size: 16", all_dtypes())
    write(path, "batching", f"{ours} max_batch_size: 64 {delay}", tagger())
    threads = 'parameters { key: "intra_op_thread_count" value { string_value: "2" } }'
    index = 'input [{ name: "index" data_type: TYPE_INT64 dims: [1] reshape { shape: [] } }]'
    write(path, "lookup", f"{ours} max_batch_size: 64 {delay} {threads} {index}", lookup())
    return path


@pytest.fixture(scope="module")
def triton(repository: Path, start_triton: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    models = tuple(folder.name for folder in repository.iterdir())
    with start_triton(repository, models, tmp_path_factory.mktemp("log") / "triton.log") as running:
        yield running


def tensors(arrays: dict[str, Array]) -> list[Any]:
    inputs = []
    for name, array in arrays.items():
        inputs.append(grpcclient.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def infer(triton: RunningTriton, name: str, outputs: tuple[str, ...] = (), /, **arrays: Array) -> Any:
    wanted = [grpcclient.InferRequestedOutput(output) for output in outputs]
    return triton.client.infer(name, tensors(arrays), outputs=wanted or None, client_timeout=60)


def infer_together(triton: RunningTriton, name: str, requests: list[dict[str, Array]]) -> list[Any]:
    """Send requests at once and return a result or an error for each."""
    answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for i, arrays in enumerate(requests):
        triton.client.async_infer(
            name,
            tensors(arrays),
            callback=lambda result, error, i=i: answers.put((i, result, error)),
            client_timeout=60,
        )
    found = {i: error or result for i, result, error in (answers.get(timeout=90) for _ in requests)}
    return [found[i] for i in range(len(requests))]


def in_process(proto: Any, **arrays: Array) -> dict[str, Array]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, arrays), strict=True))


def executions(triton: RunningTriton, name: str) -> tuple[int, int]:
    stats = triton.client.get_inference_statistics(name).model_stats[0]
    return stats.inference_count, stats.execution_count


def jets(rows: int) -> Array:
    return RNG.normal(size=(rows, 4)).astype(np.float32)


@pytest.mark.parametrize("name", ["complete", "no_sections", "no_outputs", "by_platform"])
@pytest.mark.parametrize("rows", [1, 37, 64])
def test_scores_equal_onnx_runtime_in_process(triton: RunningTriton, name: str, rows: int) -> None:
    x = jets(rows)
    scores = infer(triton, name, x=x).as_numpy("scores")
    np.testing.assert_allclose(scores, in_process(tagger(), x=x)["scores"], rtol=0, atol=1e-6)
    assert scores.dtype == np.float32
    assert scores.shape == (rows, 3)


def test_absent_sections_are_filled_from_the_onnx_file(triton: RunningTriton) -> None:
    config = triton.client.get_model_config("no_sections", as_json=True)["config"]
    assert [(t["name"], t["data_type"], t["dims"]) for t in config["input"]] == [("x", "TYPE_FP32", ["4"])]
    assert [(t["name"], t["data_type"], t["dims"]) for t in config["output"]] == [
        ("scores", "TYPE_FP32", ["3"]),
        ("best", "TYPE_FP32", ["1"]),
    ]
    assert "dynamic_batching" in config


def test_an_output_without_a_row_dimension_comes_back_as_one_column(triton: RunningTriton) -> None:
    x = jets(9)
    best = infer(triton, "no_sections", x=x).as_numpy("best")
    assert best.shape == (9, 1)
    np.testing.assert_allclose(best[:, 0], in_process(tagger(), x=x)["best"], rtol=0, atol=1e-6)


def test_a_configuration_that_says_nothing_gets_nvidias_batch_size(triton: RunningTriton) -> None:
    assert triton.client.get_model_config("bare", as_json=True)["config"]["max_batch_size"] == 4
    x = jets(4)
    expected = in_process(tagger(), x=x)["scores"]
    np.testing.assert_allclose(infer(triton, "bare", x=x).as_numpy("scores"), expected, rtol=0, atol=1e-6)
    with pytest.raises(InferenceServerException, match="batch-size must be <= 4"):
        infer(triton, "bare", x=jets(5))


def test_a_model_of_fixed_rows_has_no_batch_dimension(triton: RunningTriton) -> None:
    config = triton.client.get_model_config("fixed_rows", as_json=True)["config"]
    assert (config.get("max_batch_size", 0), config["input"][0]["dims"]) == (0, ["5", "4"])
    x = jets(5)
    answer = infer(triton, "fixed_rows", x=x)
    for name, expected in in_process(tagger(rows=5), x=x).items():
        np.testing.assert_allclose(answer.as_numpy(name), expected, rtol=0, atol=1e-6)


def test_a_number_for_the_whole_request_comes_back_as_one_value(triton: RunningTriton) -> None:
    x = jets(6)
    total = infer(triton, "pooled", x=x).as_numpy("total")
    assert total.shape == (1,)
    np.testing.assert_allclose(total[0], in_process(pooled(), x=x)["total"], rtol=1e-6)


def test_another_file_name_is_served(triton: RunningTriton) -> None:
    x = jets(2)
    expected = in_process(tagger(), x=x)["scores"]
    np.testing.assert_allclose(infer(triton, "named", x=x).as_numpy("scores"), expected, rtol=0, atol=1e-6)


def test_every_dtype_comes_back_to_the_bit(triton: RunningTriton) -> None:
    arrays: dict[str, Array] = {
        name: (RNG.normal(size=(7, 2, 3)) * 40).astype(dtype) for name, dtype in DTYPES.values()
    }
    arrays["INT64"][0, 0, 0] = 2**62 + 1
    arrays["FP32"][0, 0] = [np.nan, np.inf, -0.0]
    arrays["BYTES"] = np.array([f"jet é {i}" for i in range(42)], dtype=object).reshape(7, 2, 3)
    answer = infer(triton, "dtypes", **arrays)
    for name, dtype in DTYPES.values():
        same = answer.as_numpy(f"same_{name}")
        assert same.dtype == dtype
        assert same.tobytes() == arrays[name].tobytes(), name
    strings = [text.decode() for text in answer.as_numpy("same_BYTES").ravel()]
    assert strings == list(arrays["BYTES"].ravel())


def test_only_the_outputs_that_were_asked_for_come_back(triton: RunningTriton) -> None:
    answer = infer(triton, "no_sections", ("best",), x=jets(3))
    assert [output.name for output in answer.get_response().outputs] == ["best"]


def test_requests_of_a_dynamic_batch_run_once_and_get_their_own_rows(triton: RunningTriton) -> None:
    xs = [jets(rows) for rows in (1, 5, 2, 9, 3, 7)]
    rows, runs = executions(triton, "batching")
    answers = infer_together(triton, "batching", [{"x": x} for x in xs])
    for x, answer in zip(xs, answers, strict=True):
        expected = in_process(tagger(), x=x)["scores"]
        np.testing.assert_allclose(answer.as_numpy("scores"), expected, rtol=0, atol=1e-6)
    after = executions(triton, "batching")
    assert after[0] - rows == 27
    assert after[1] - runs < len(xs)


def test_a_wrong_request_fails_alone(triton: RunningTriton) -> None:
    indices = [[[0], [3]], [[99]], [[2]], [[1]]]
    answers = infer_together(triton, "lookup", [{"index": np.array(index, np.int64)} for index in indices])
    assert isinstance(answers[1], InferenceServerException)
    assert answers[1].status() == "StatusCode.INVALID_ARGUMENT"
    assert "onnxruntime: " in str(answers[1])
    assert "idx=99 must be within" in str(answers[1])
    weights = numpy_helper.to_array(WEIGHTS)
    for i in (0, 2, 3):
        np.testing.assert_array_equal(answers[i].as_numpy("row"), weights[np.ravel(indices[i])])


WRONG = {
    "type": (
        f"max_batch_size: 4 {TENSORS.replace('FP32', 'FP64', 1)}",
        tagger(),
        "says TYPE_FP64, the ONNX file tensor.fl",
    ),
    "dims": (
        f"max_batch_size: 4 {TENSORS.replace('[4]', '[5]')}",
        tagger(),
        r"says \[-1, 5\], the ONNX file \[-1, 4\]",
    ),
    "name": (
        f"max_batch_size: 4 {TENSORS.replace('scores', 'score')}",
        tagger(),
        "the ONNX file has no output 'score'",
    ),
    "batch": (f"max_batch_size: 4 {TENSORS}", tagger(rows=5), r"first dimension of \[5, 4\] is not free"),
    "missing": (f"max_batch_size: 4 {TENSORS}", tagger(), "there is no file"),
    "pooled": ("max_batch_size: 4", pooled(), r"first dimension of \[\] is not free"),
    "section": (
        f'max_batch_size: 4 {TENSORS} model_operations {{ op_library_filename: "ops.so" }}',
        tagger(),
        "does not know model_operations",
    ),
    "damaged": (f"max_batch_size: 4 {TENSORS}", tagger(), "Protobuf parsing failed"),
}


def refusal(triton: RunningTriton, name: str) -> str:
    with pytest.raises(InferenceServerException) as caught:
        triton.client.load_model(name)
    return str(caught.value)


def test_a_configuration_that_does_not_fit_the_file_is_refused_in_words(start_triton: Start, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name, (config, proto, _) in WRONG.items():
        write(
            repository, name, f'backend: "onnxruntime" instance_group [{{ count: 1 kind: KIND_CPU }}] {config}', proto
        )
    (repository / "missing/1/model.onnx").unlink()
    (repository / "damaged/1/model.onnx").write_bytes(b"rubbish")
    with start_triton(repository, (), tmp_path / "log") as triton, ThreadPoolExecutor() as threads:
        refusals = dict(zip(WRONG, threads.map(lambda name: refusal(triton, name), WRONG), strict=True))
    for name, (_, _, message) in WRONG.items():
        assert re.search(message, refusals[name]), refusals[name]
