"""Train the ``btag`` tagger on the ttbar samples and write its model repository entry.

Run as ``python -m sonic_parsl.workflows.training.btag``; the same seed gives the same model.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import onnxruntime

from sonic_parsl.workflows.btag_inputs import CLASSES, FEATURES
from sonic_parsl.workflows.training import btag_card, mlp, roc
from sonic_parsl.workflows.training.graphs import Graph, Tensor, save, triton_config
from sonic_parsl.workflows.training.jets import Jets, load, split

SEED = 2026
TEST_FRACTION = 1 / 3
RECIPE = mlp.Recipe(hidden=(32, 16), steps=300, rate=0.01, decay=0.03, seed=SEED)
MODEL_DIR = Path(__file__).resolve().parent.parent / "models" / "btag"
MAX_BATCH_SIZE = 1024
INPUT = Tensor("features", (len(FEATURES),))
OUTPUT = Tensor("scores", (len(CLASSES),))


@click.command(help="Train the btag model and write it, its configuration and its card.")
@click.option("--output", type=click.Path(path_type=Path), default=MODEL_DIR, show_default=True)
def main(output: Path) -> None:
    """Train, export, measure the exported file on the held-out events, write the card."""
    train_jets, test_jets = split(load(), seed=SEED, test_fraction=TEST_FRACTION)
    model = output / "1" / "model.onnx"
    export(train_jets, model)
    (output / "config.pbtxt").write_text(config())
    areas = measure(test_jets, onnx_scores(model, test_jets.features))
    card = btag_card.text(train_jets, test_jets, areas=areas, recipe=RECIPE, n_bytes=model.stat().st_size)
    (output / "MODEL_CARD.md").write_text(card)
    for name, found in areas.items():
        click.echo(f"{name}: AUC {found.value:.3f} ± {found.error:.3f}")


def export(jets: Jets, path: Path) -> None:
    """Train on these jets and write the ONNX file: raw features in, class scores out.

    Each class has the same total weight, so that the scores do not carry the sample's flavour mixture.
    """
    x = transform(jets.features)
    centre, width = x.mean(axis=0), x.std(axis=0)
    class_weight = 1 / np.bincount(jets.truth)
    layers = mlp.train((x - centre) / width, jets.truth, class_weight[jets.truth], RECIPE)
    save(_graph(layers, centre, width), path, name="btag", inputs=(INPUT,), output=OUTPUT)


def transform(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return log(1 + |x|): it tames pt and mass, folds eta and hardly changes the fractions."""
    return np.log1p(np.abs(features.astype(np.float64)))


def config() -> str:
    """Return the model's ``config.pbtxt``."""
    return triton_config(
        name="btag",
        remarks=("Jet flavour from NanoAOD Jet fields; see MODEL_CARD.md. Written by workflows/training/btag.py.",),
        max_batch_size=MAX_BATCH_SIZE,
        inputs=(INPUT,),
        output=OUTPUT,
        parameters={"features": FEATURES, "classes": CLASSES},
    )


def onnx_scores(path: Path, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Run the ONNX file in this process; shapes ``(n_rows, n_features)`` to ``(n_rows, n_classes)``."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores: npt.NDArray[np.float32] = session.run([OUTPUT.name], {INPUT.name: features})[0]
    return scores


def measure(jets: Jets, scores: npt.NDArray[np.float32]) -> dict[str, roc.Area]:
    """Return b against light and against c, for these scores and for ParticleNet's on the same jets."""
    particle_net = {"light": jets.references[:, 0], "c": -jets.references[:, 1]}
    areas = {}
    for other in ("light", "c"):
        column = CLASSES.index(other)
        rows = np.isin(jets.truth, [0, column])
        discriminators = {
            "btag": scores[:, 0] / (scores[:, 0] + scores[:, column]),
            "ParticleNet": particle_net[other],
        }
        for name, values in discriminators.items():
            areas[f"{name} b vs {other}"] = roc.area(values[rows], jets.truth[rows] == 0, jets.event[rows], seed=SEED)
    return areas


def _graph(layers: tuple[mlp.Layer, ...], centre: mlp.Floats, width: mlp.Floats) -> Graph:
    graph = Graph()
    size = graph.add("Abs", INPUT.name, to="absolute")
    logarithm = graph.add("Log", graph.add("Add", size, graph.constant("one", 1.0), to="shifted"), to="logarithm")
    centred = graph.add("Sub", logarithm, graph.constant("centre", centre), to="centred")
    value = graph.add("Div", centred, graph.constant("width", width), to="standardised")
    for number, layer in enumerate(layers):
        value = graph.dense(value, layer.weight, layer.bias, to=f"dense_{number}", relu=layer is not layers[-1])
    graph.add("Softmax", value, to=OUTPUT.name, axis=-1)
    return graph


if __name__ == "__main__":
    main()
