"""The small numerics of the training scripts agree with their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.workflows.training import mlp, roc

SCORES = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=20)


@given(signal=SCORES, background=SCORES)
def test_the_area_is_the_share_of_pairs_in_the_right_order(signal: list[float], background: list[float]) -> None:
    pairs = [0.5 * ((s > b) + (s >= b)) for s in signal for b in background]
    score = np.array(background + signal)
    is_signal = np.arange(len(score)) >= len(background)
    assert roc.auc(score, is_signal) == pytest.approx(np.mean(pairs))


@given(signal=SCORES, background=SCORES, data=st.data())
def test_a_weight_of_n_counts_as_n_rows(signal: list[float], background: list[float], data: st.DataObject) -> None:
    score = np.array(background + signal)
    is_signal = np.arange(len(score)) >= len(background)
    counts = np.array(data.draw(st.lists(st.integers(1, 3), min_size=len(score), max_size=len(score))))
    repeated = roc.auc(np.repeat(score, counts), np.repeat(is_signal, counts))
    assert roc.auc(score, is_signal, counts.astype(float)) == pytest.approx(repeated)


def test_the_error_of_an_area_shrinks_with_the_number_of_events() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for n_events in (100, 1600):
        is_signal = rng.random(n_events) < 0.5
        score = rng.normal(is_signal, 1)
        errors.append(roc.area(score, is_signal, np.arange(n_events), seed=0).error)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)


def test_jets_of_one_event_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    is_signal = rng.random(200) < 0.5
    score, event = rng.normal(is_signal, 1), np.arange(200)
    once = roc.area(score, is_signal, event, seed=0)
    twice = roc.area(np.tile(score, 2), np.tile(is_signal, 2), np.tile(event, 2), seed=0)
    assert twice.error == pytest.approx(once.error)


def test_the_perceptron_learns_what_a_line_cannot_and_repeats_itself() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, size=(400, 2))
    truth = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    recipe = mlp.Recipe(hidden=(16,), steps=300, rate=0.02, decay=0.0, seed=1)
    first, again = (mlp.scores(mlp.train(x, truth, np.ones(400), recipe), x) for _ in range(2))
    assert np.mean(first.argmax(axis=1) == truth) > 0.97
    assert np.array_equal(first, again)
