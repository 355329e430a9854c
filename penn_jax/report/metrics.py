"""Precision, recall, accuracy, F1, IoU and Dice from confusion counts, with 95 % intervals.

Everything starts from counts of pixels, which add up over patches, slices and cases, so that a
mean is taken once and never over uneven parts. Empty masks follow one rule, ``POLICY``.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from jaxtyping import Float64, Int64

from penn_jax.report.intervals import Interval, interval_over_cases
from penn_jax.types import IGNORE_LABEL

METRICS = ("precision", "recall", "accuracy", "f1", "iou", "dice")

POLICY = (
    "A class absent from both prediction and reference has undefined (null) overlap metrics and "
    "accuracy 1; present in only one of them, its overlap metrics are 0. The value of a case is "
    "the mean over the classes present in either; means over cases leave undefined values out and "
    "tell how many are left (n). Surface distances need the class in both, else they are undefined."
)
"""The one rule for empty masks; ``docs/metrics.md`` gives the reasons."""


class Mean(TypedDict):
    """A mean over cases, its 95 % interval (None below two cases) and the number of cases."""

    value: float | None
    ci95: Interval | None
    n: int


@dataclass(frozen=True, eq=False)
class Confusion:
    """Pixel counts of each class against all the others; counts merge by addition.

    The arrays share one shape, ``(K,)`` for K foreground classes, or none for their sum.
    """

    true_positive: np.ndarray
    false_positive: np.ndarray
    false_negative: np.ndarray
    true_negative: np.ndarray

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
            self.true_negative + other.true_negative,
        )

    @property
    def in_prediction(self) -> np.ndarray:
        """Pixels predicted as the class."""
        return self.true_positive + self.false_positive

    @property
    def in_reference(self) -> np.ndarray:
        """Pixels that are the class."""
        return self.true_positive + self.false_negative

    @property
    def present(self) -> np.ndarray:
        """Whether a class is in the prediction or in the reference."""
        return (self.in_prediction + self.in_reference) > 0

    def summed(self) -> Confusion:
        """The counts of all classes together, as those of a single class: shape (1,)."""
        return Confusion(*self.array().sum(axis=-1, keepdims=True))

    def select(self, index: Sequence[int] | Int64[np.ndarray, " k"]) -> Confusion:
        """The counts of some of the classes, by position."""
        return Confusion(*self.array()[:, np.asarray(index, np.int64)])

    def array(self) -> np.ndarray:
        """The four counts stacked along a new first axis, in the order of the fields."""
        return np.stack(
            [self.true_positive, self.false_positive, self.false_negative, self.true_negative]
        )


def confusion(
    prediction: np.ndarray,
    reference: np.ndarray,
    classes: Sequence[int],
) -> Confusion:
    """Count the pixels of each foreground class, one class against all other labels.

    Pixels whose reference is ``IGNORE_LABEL`` are not counted at all. A label that is not in
    ``classes`` counts as background.

    Args:
        prediction: predicted labels, uint8 of any shape.
        reference: labels taken as true, uint8 of the same shape.
        classes: the K foreground labels, in the order of the result.

    Returns:
        int64 counts of shape ``(K,)``.

    Raises:
        ValueError: shapes differ, or labels are not uint8.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ")
    if prediction.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(f"labels are {prediction.dtype} and {reference.dtype}, expected uint8")
    counted = reference != IGNORE_LABEL
    # Background right in both is most of a scan: leave it out of the joint histogram.
    foreground = counted & ((prediction | reference) != 0)
    pairs = reference[foreground].astype(np.uint16) << 8 | prediction[foreground]
    joint = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    index = np.asarray(classes, np.int64)
    both = joint[index, index]
    false_positive = joint.sum(axis=0)[index] - both
    false_negative = joint.sum(axis=1)[index] - both
    total = np.count_nonzero(counted)
    return Confusion(
        both, false_positive, false_negative, total - both - false_positive - false_negative
    )


def six_metrics(counts: Confusion) -> dict[str, np.ndarray]:
    """The six metrics of any array of counts, elementwise.

    precision = TP/(TP+FP), recall = TP/(TP+FN), accuracy = (TP+TN)/(TP+FP+FN+TN),
    IoU = TP/(TP+FP+FN), F1 = Dice = 2 TP/(2 TP+FP+FN).

    Returns:
        metric -> float64 array of the counts' shape. By ``POLICY`` the overlap metrics (all but
        accuracy) are NaN where TP+FP+FN = 0, and a remaining 0/0 is 0: the class was either
        missed altogether (precision) or found where there is none (recall).

    References:
        Taha and Hanbury 2015, BMC Medical Imaging 15:29.
    """
    tp, fp, fn, tn = (np.asarray(count, np.float64) for count in counts.array())

    def overlap(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        value = numerator / np.maximum(denominator, 1)
        return np.where(counts.present, value, np.nan)

    total = tp + fp + fn + tn
    dice = overlap(2 * tp, 2 * tp + fp + fn)
    return {
        "precision": overlap(tp, tp + fp),
        "recall": overlap(tp, tp + fn),
        "accuracy": np.where(total > 0, (tp + tn) / np.maximum(total, 1), np.nan),
        "f1": dice,
        "iou": overlap(tp, tp + fp + fn),
        "dice": dice,
    }


def pooled_metrics(counts: Confusion) -> dict[str, float]:
    """The six metrics over all pixels, the counts of all foreground classes added up first.

    With several classes accuracy is therefore the mean of the accuracies of each class against
    the rest, not the share of pixels whose label is right.
    """
    return {name: float(value[0]) for name, value in six_metrics(counts.summed()).items()}


def case_metrics(counts: Confusion) -> dict[str, float]:
    """The six metrics of one case: the mean over the classes present in either mask.

    A case without any foreground in either mask has NaN overlap metrics and accuracy 1.
    """
    values = six_metrics(counts)
    if not counts.present.any():
        return {name: float(values[name][0]) for name in METRICS}
    return {name: float(values[name][counts.present].mean()) for name in METRICS}


def mean_over_cases(
    values: Float64[np.ndarray, " n"],
    bounds: Interval = (-math.inf, math.inf),
    seed: int = 0,
) -> Mean:
    """The mean of the defined values with its 95 % interval over cases.

    Args:
        values: one value a case, NaN where undefined.
        bounds: the least and the greatest value possible; the interval of a few cases is cut there.
        seed: the interval is a function of the values and of this number.
    """
    defined = np.asarray(values, np.float64)
    defined = defined[~np.isnan(defined)]
    n = len(defined)
    if n == 0:
        return Mean(value=None, ci95=None, n=0)
    (interval,) = interval_over_cases(defined[:, None], lambda sums: sums / n, bounds, seed)
    return Mean(value=float(defined.mean()), ci95=interval, n=n)


def pooled_intervals(cases: Sequence[Confusion], seed: int = 0) -> dict[str, Interval | None]:
    """95 % intervals over cases of the pooled metrics: cases are drawn, then pooled."""
    rows = np.stack([case.summed().array()[:, 0] for case in cases]).astype(np.float64)

    def pooled(sums: Float64[np.ndarray, "r 4"]) -> Float64[np.ndarray, "r 6"]:
        values = six_metrics(Confusion(*sums.T))
        return np.stack([values[name] for name in METRICS], axis=1)

    intervals = interval_over_cases(rows, pooled, (0.0, 1.0), seed)
    return dict(zip(METRICS, intervals, strict=True))


def total(cases: Sequence[Confusion]) -> Confusion:
    """The counts of several cases added up."""
    return functools.reduce(operator.add, cases)
