"""Whether predicted probabilities mean what they say: of voxels given 80 %, four fifths are right.

Every pair of a voxel and a foreground class counts once: its predicted probability, and whether
the voxel is of the class. With one class this is the reliability of the foreground's probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8

from penn_jax.types import IGNORE_LABEL

BINS = 15


@dataclass(frozen=True, eq=False)
class Reliability:
    """Pairs sorted into bins of equal width by predicted probability; merges by addition."""

    pairs: Int64[np.ndarray, " bins"]
    predicted: Float64[np.ndarray, " bins"]
    """Sum of the predicted probabilities."""
    observed: Int64[np.ndarray, " bins"]
    """Pairs whose voxel is of the class."""

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.pairs + other.pairs,
            self.predicted + other.predicted,
            self.observed + other.observed,
        )

    def curve(self) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
        """Mean predicted probability and share observed, of the bins that hold any pair."""
        some = self.pairs > 0
        return self.predicted[some] / self.pairs[some], self.observed[some] / self.pairs[some]


NOTHING = Reliability(np.zeros(BINS, np.int64), np.zeros(BINS), np.zeros(BINS, np.int64))
"""Of no voxel."""


def reliability(
    probabilities: Float[np.ndarray, "*voxels K"],
    reference: UInt8[np.ndarray, "*voxels"],
    counted: Bool[np.ndarray, "*voxels"] | None = None,
) -> Reliability:
    """Sort the voxels of an image by the probability of each foreground class.

    Args:
        probabilities: of the K classes, the first of which is the background.
        reference: classes taken as true; ``IGNORE_LABEL`` is left out.
        counted: the voxels to count; None counts all.
    """
    chosen = reference != IGNORE_LABEL
    if counted is not None:
        chosen &= counted
    classes, total = reference[chosen], NOTHING
    for number in range(1, probabilities.shape[-1]):
        given = probabilities[..., number][chosen].astype(np.float64)
        true = classes == number
        bins = np.clip((given * BINS).astype(np.int64), 0, BINS - 1)
        total = total + Reliability(
            np.bincount(bins, minlength=BINS),
            np.bincount(bins, given, BINS).astype(np.float64),  # of no voxel, integers
            np.bincount(bins[true], minlength=BINS),
        )
    return total


def expected_calibration_error(counts: Reliability) -> float | None:
    """Mean distance of predicted probability and observed share, None where nothing was counted.

        ECE = Σ_b n_b / n · |mean predicted_b - share observed_b|

    Reference:
        Naeini, Cooper and Hauskrecht 2015, AAAI; Nixon et al. 2019, CVPR Workshops, for classes
        taken each by itself.
    """
    if not counts.pairs.any():
        return None
    return float(np.abs(counts.predicted - counts.observed).sum() / counts.pairs.sum())
