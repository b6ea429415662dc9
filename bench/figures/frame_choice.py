"""From per-frame probabilities to the chosen frame, as the pipeline goes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acouslic.geometry import sweep_ranges
from algorithm.judgement.select_frame import Values, choose_candidates, judge_frames
from algorithm.model.manifest import SelectionConfig


@dataclass(frozen=True)
class Choice:
    """Which frame a run would try to outline first, and the probabilities it reports."""

    frame_index: int
    presence_probability: Values
    """(F,), smoothed, and read half-way where the manifest says so."""


def choose_frame(
    presence: Values, optimality: Values | None, blank: NDArray[np.bool_], selection: SelectionConfig
) -> Choice:
    """The pipeline's choice from unsmoothed (F,) probabilities and the frames without any pixel (F,), not all of them.

    A run passes on to its next candidate where a mask has no ellipse; masks are not looked at here.
    """
    sweeps = sweep_ranges(len(presence))
    judged = judge_frames(np.where(blank, 0.0, presence), optimality, sweeps, selection)
    candidates = choose_candidates(np.where(blank, -1.0, judged.quality), sweeps, selection.candidates)
    return Choice(next(index for index in candidates if not blank[index]), judged.presence)


def rank_correlation(first: Values, second: Values) -> float:
    """Spearman's, equal values sharing their mean rank; NaN where either is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Values) -> Values:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
