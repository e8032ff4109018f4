"""Area under the ROC curve and its error from resampled events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

N_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Area:
    """An area under a ROC curve and its standard error."""

    value: float
    error: float


def auc(
    score: npt.NDArray[np.floating], is_signal: npt.NDArray[np.bool_], weight: npt.NDArray[np.floating] | None = None
) -> float:
    """Return the chance that a signal row scores above a background row; ties count half.

    All arrays have shape ``(n_rows,)``; without ``weight`` each row counts once.
    """
    weight = np.ones(len(score)) if weight is None else weight
    order = np.argsort(score[~is_signal], kind="stable")
    background = score[~is_signal][order]
    below = np.concatenate([[0.0], np.cumsum(weight[~is_signal][order])])
    signal, signal_weight = score[is_signal], weight[is_signal]
    beaten = below[np.searchsorted(background, signal, "left")] + below[np.searchsorted(background, signal, "right")]
    return float(0.5 * np.sum(signal_weight * beaten) / (signal_weight.sum() * below[-1]))


def area(
    score: npt.NDArray[np.floating],
    is_signal: npt.NDArray[np.bool_],
    event: npt.NDArray[np.int64],
    *,
    seed: int,
) -> Area:
    """Return the area with its bootstrap error.

    Events are drawn with replacement, not jets: jets of one event are not independent.
    """
    rng = np.random.default_rng(seed)
    events, of_row = np.unique(event, return_inverse=True)
    draws = rng.multinomial(len(events), np.full(len(events), 1 / len(events)), size=N_BOOTSTRAPS)
    resampled = [auc(score, is_signal, drawn[of_row].astype(np.float64)) for drawn in draws]
    return Area(auc(score, is_signal), float(np.std(resampled)))
