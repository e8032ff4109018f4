"""Write the ``shape_demo`` model: DeepSets (arXiv:1810.05165) over padded candidates, with random weights.

Run as ``python -m sonic_parsl.workflows.training.shape_demo``. It shows the shapes of a
particle tagger, channels first and with a mask as weaver exports them; no physics is claimed.
"""

from __future__ import annotations

from pathlib import Path

import click

from sonic_parsl.workflows.shape_demo_inputs import CLASSES, FEATURES, LENGTH
from sonic_parsl.workflows.training import mlp
from sonic_parsl.workflows.training.graphs import Graph, Tensor, save, triton_config

SEED = 2026
PER_CANDIDATE = (len(FEATURES), 64, 32)
PER_JET = (32, 32, len(CLASSES))
MODEL_DIR = Path(__file__).resolve().parent.parent / "models" / "shape_demo"
MAX_BATCH_SIZE = 256
INPUT = Tensor("pf_features", (len(FEATURES), LENGTH))
MASK = Tensor("pf_mask", (1, LENGTH))
OUTPUT = Tensor("scores", (len(CLASSES),))


@click.command(help="Write the shape_demo model and its configuration.")
@click.option("--output", type=click.Path(path_type=Path), default=MODEL_DIR, show_default=True)
def main(output: Path) -> None:
    """Write the repository entry."""
    save(_graph(), output / "1" / "model.onnx", name="shape_demo", inputs=(INPUT, MASK), output=OUTPUT)
    (output / "config.pbtxt").write_text(config())


def config() -> str:
    """Return the model's ``config.pbtxt``."""
    return triton_config(
        name="shape_demo",
        remarks=(
            "Random weights of a fixed seed: the scores mean nothing, no physics is claimed.",
            "It is here for its shapes. pf_mask is 1 for a candidate and 0 for padding, whose values are ignored.",
            "Written by workflows/training/shape_demo.py.",
        ),
        max_batch_size=MAX_BATCH_SIZE,
        inputs=(INPUT, MASK),
        output=OUTPUT,
        parameters={"features": FEATURES, "classes": CLASSES},
    )


def _graph() -> Graph:
    graph = Graph()
    zero = graph.constant("zero", 0.0)
    mask = graph.add("Transpose", MASK.name, to="mask", perm=[0, 2, 1])
    is_real = graph.add("Greater", mask, zero, to="is_real")
    rows = graph.add("Transpose", INPUT.name, to="rows", perm=[0, 2, 1])
    # Where, not a product: padding may hold NaN.
    value = _soft_logarithm(graph, graph.add("Where", is_real, rows, zero, to="kept"))
    for number, layer in enumerate(mlp.start_layers(PER_CANDIDATE, seed=SEED)):
        value = graph.dense(value, layer.weight, layer.bias, to=f"candidate_{number}", relu=True)
    value = _mean(graph, graph.add("Where", is_real, value, zero, to="embedded"), is_real)
    layers = mlp.start_layers(PER_JET, seed=SEED + 1)
    for number, layer in enumerate(layers):
        value = graph.dense(value, layer.weight, layer.bias, to=f"jet_{number}", relu=layer is not layers[-1])
    graph.add("Softmax", value, to=OUTPUT.name, axis=-1)
    return graph


def _soft_logarithm(graph: Graph, value: str) -> str:
    """Add sign(x) log(1 + |x|), which brings GeV and cm to one scale."""
    size = graph.add("Add", graph.add("Abs", value, to="size"), graph.constant("one", 1.0), to="size_plus_one")
    logarithm = graph.add("Log", size, to="logarithm")
    return graph.add("Mul", graph.add("Sign", value, to="sign"), logarithm, to="scaled")


def _mean(graph: Graph, value: str, is_real: str) -> str:
    """Add the mean over a jet's candidates; it is zero for a jet without any."""
    axis = graph.constant("axis", [1], "int64")
    ones = graph.add("Where", is_real, "one", "zero", to="ones")
    count = graph.add("ReduceSum", ones, axis, to="count", keepdims=0)
    total = graph.add("ReduceSum", value, axis, to="total", keepdims=0)
    return graph.add("Div", total, graph.add("Max", count, "one", to="divisor"), to="mean")


if __name__ == "__main__":
    main()
