"""A multi-layer perceptron for a few thousand rows: plain NumPy, Adam, the same result for the same seed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Layer:
    """One dense layer: ``x @ weight + bias``, shapes ``(n_in, n_out)`` and ``(n_out,)``."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True)
class Recipe:
    """How to train: hidden widths, full-batch steps, Adam's rate, L2 weight decay, seed of the start weights."""

    hidden: tuple[int, ...]
    steps: int
    rate: float
    decay: float
    seed: int


def train(x: Floats, truth: npt.NDArray[np.int64], weight: Floats, recipe: Recipe) -> tuple[Layer, ...]:
    """Minimise the weighted cross-entropy of softmax scores.

    Parameters
    ----------
    x
        Standardised inputs, shape ``(n_rows, n_in)``.
    truth
        Class of each row, shape ``(n_rows,)``.
    weight
        Weight of each row, shape ``(n_rows,)``; their scale does not matter.
    recipe
        Widths and optimiser settings.

    Returns
    -------
    tuple of Layer
        ReLU stands between them, softmax after the last.
    """
    n_classes = int(truth.max()) + 1
    layers = start_layers((x.shape[1], *recipe.hidden, n_classes), seed=recipe.seed)
    parameters = [array for layer in layers for array in (layer.weight, layer.bias)]
    target = np.eye(n_classes)[truth]
    share = (weight / weight.sum())[:, None]
    moments = [(np.zeros_like(array), np.zeros_like(array)) for array in parameters]
    for step in range(1, recipe.steps + 1):
        for array, gradient, (first, second) in zip(
            parameters, _gradients(layers, x, target, share, recipe.decay), moments, strict=True
        ):
            _adam(array, gradient, first, second, rate=recipe.rate, step=step)
    return layers


def start_layers(widths: tuple[int, ...], *, seed: int) -> tuple[Layer, ...]:
    """Return layers with He-normal weights and zero bias."""
    rng = np.random.default_rng(seed)
    return tuple(
        Layer(rng.normal(scale=np.sqrt(2 / n_in), size=(n_in, n_out)), np.zeros(n_out))
        for n_in, n_out in itertools.pairwise(widths)
    )


def scores(layers: tuple[Layer, ...], x: Floats) -> Floats:
    """Return the softmax scores, shape ``(n_rows, n_classes)``."""
    return _softmax(_activations(layers, x)[-1])


def _activations(layers: tuple[Layer, ...], x: Floats) -> list[Floats]:
    """Return the input of each layer and, last, the logits."""
    values = [x]
    for layer in layers[:-1]:
        values.append(np.maximum(values[-1] @ layer.weight + layer.bias, 0))
    return [*values, values[-1] @ layers[-1].weight + layers[-1].bias]


def _gradients(layers: tuple[Layer, ...], x: Floats, target: Floats, share: Floats, decay: float) -> list[Floats]:
    values = _activations(layers, x)
    slope = share * (_softmax(values[-1]) - target)
    gradients: list[Floats] = []
    for layer, value in zip(reversed(layers), reversed(values[:-1]), strict=True):
        gradients += [slope.sum(axis=0), value.T @ slope + decay * layer.weight]
        slope = (slope @ layer.weight.T) * (value > 0)
    return gradients[::-1]


def _adam(array: Floats, gradient: Floats, first: Floats, second: Floats, *, rate: float, step: int) -> None:
    """Take one step of Adam (arXiv:1412.6980) in place."""
    first += (1 - ADAM_BETA1) * (gradient - first)
    second += (1 - ADAM_BETA2) * (gradient**2 - second)
    unbiased = np.sqrt(second / (1 - ADAM_BETA2**step)) + ADAM_EPSILON
    array -= rate * first / (1 - ADAM_BETA1**step) / unbiased


def _softmax(logits: Floats) -> Floats:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    normalised: Floats = odds / odds.sum(axis=1, keepdims=True)
    return normalised
