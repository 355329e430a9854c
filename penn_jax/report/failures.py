"""Where a network fails, and what the scan or the structure has that may explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage
from scipy.stats import rankdata

from penn_jax.types import IGNORE_LABEL

_RIM = 5  # voxels around a structure that it is compared with
_EDGE = 2  # voxels from the end of a frame that are its border
_TAILS = (0.1, 0.9)  # of the training cases, beyond which a case is unlike them
_APART = 0.1  # of recall and precision, to call the error one-sided
_CONFUSED = 0.1  # gained in Dice where all classes are taken as one


class Traits(NamedTuple):
    """What the reference of a case looks like, all foreground classes as one; NaN without any."""

    volume: float
    """mm³."""
    contrast: float
    """|mean inside - mean in the rim| / √((variance inside + variance in the rim) / 2)."""
    border: float
    """Share of the structure within two voxels of the end of a frame."""


class Limits(NamedTuple):
    """The ends of what training cases look like: 10 and 90 % quantiles."""

    low: Traits
    high: Traits


class Result(NamedTuple):
    """How one case came out."""

    dice: float
    precision: float
    recall: float
    merged_dice: float
    """With all foreground classes taken as one."""
    predicted: bool
    """Whether there is any foreground in the prediction."""
    traits: Traits


def measure_traits(
    image: Float[np.ndarray, "F *spatial C"],
    labels: UInt8[np.ndarray, "F *spatial"],
    voxel_volume: float,
) -> Traits:
    """Measure a case on its prepared grid.

    The rim is drawn within frames, for the slices of a 2-D case may lie far apart. Of several
    channels the one of the highest contrast counts.

    Args:
        image: prepared frames.
        labels: the reference.
        voxel_volume: mm³.
    """
    inside = (labels > 0) & (labels != IGNORE_LABEL)
    if not inside.any():
        return Traits(np.nan, np.nan, np.nan)
    edge = np.ones(labels.shape, bool)
    edge[(slice(None), *[slice(_EDGE, -_EDGE)] * (labels.ndim - 1))] = False
    traits = {
        "volume": float(inside.sum() * voxel_volume),
        "border": float((inside & edge).sum() / inside.sum()),
    }
    box = _widened(ndimage.find_objects(inside.astype(np.uint8))[0], labels.shape)
    inside, labels, image = inside[box], labels[box], image[box]
    in_frame = ndimage.generate_binary_structure(labels.ndim, 1)
    in_frame[[0, 2]] = False
    rim = ndimage.binary_dilation(inside, in_frame, _RIM) & (labels == 0)
    return Traits(contrast=_contrast(image[inside], image[rim]), **traits)


def _widened(box: Sequence[slice], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(
        slice(max(0, part.start - _RIM), min(size, part.stop + _RIM))
        for part, size in zip(box, shape, strict=True)
    )


def _contrast(inside: Float[np.ndarray, "n C"], rim: Float[np.ndarray, "m C"]) -> float:
    if not len(rim):
        return np.nan
    spread = np.sqrt((inside.var(axis=0) + rim.var(axis=0)) / 2)
    apart = np.abs(inside.mean(axis=0) - rim.mean(axis=0))
    return float((apart / np.maximum(spread, 1e-6)).max())


def limits(training: Sequence[Traits]) -> Limits:
    """The ends of what most training cases look like; NaN where none has any foreground."""
    columns = np.array(training, np.float64).reshape(-1, len(Traits._fields)).T
    known = [column[~np.isnan(column)] for column in columns]
    low, high = (
        [float(np.quantile(column, tail)) if len(column) else np.nan for column in known]
        for tail in _TAILS
    )
    return Limits(Traits(*low), Traits(*high))


def worst(dice: Mapping[str, float]) -> list[str]:
    """The tenth of the cases with the lowest Dice, at least 3 and at most 20, the lowest first."""
    ranked = sorted((case for case in dice if not np.isnan(dice[case])), key=lambda c: dice[c])
    return ranked[: min(20, max(3, len(ranked) // 10))]


def causes(result: Result, usual: Limits) -> list[str]:
    """What can be told of a failure: the kind of error first, then what is unusual in the case."""
    traits, found = result.traits, []
    if np.isnan(traits.volume):
        return ["found where there is nothing"]
    if not result.predicted:
        found.append("nothing found")
    elif result.merged_dice == 0:
        found.append("found elsewhere")
    elif result.recall < result.precision - _APART:
        found.append(f"too little found (recall {100 * result.recall:.0f} %)")
    elif result.precision < result.recall - _APART:
        found.append(f"too much found (precision {100 * result.precision:.0f} %)")
    if result.merged_dice > result.dice + _CONFUSED:
        found.append(f"classes confused (Dice {100 * result.merged_dice:.0f} % taken as one)")
    # Comparisons with NaN are false: nothing is said where nothing is known.
    if traits.volume < usual.low.volume:
        found.append("small")
    if traits.volume > usual.high.volume:
        found.append("large")
    if traits.contrast < usual.low.contrast:
        found.append("low contrast")
    if traits.border > usual.high.border:
        found.append("at the border of the image")
    return found


def rank_correlations(results: Sequence[Result]) -> dict[str, tuple[float, int]]:
    """Spearman's rank correlation of each trait with Dice, and the number of cases.

    NaN where fewer than three cases, or equal ones only, are left.
    """
    found = {}
    for name in Traits._fields:
        pairs = [(getattr(result.traits, name), result.dice) for result in results]
        pairs = np.array(pairs, np.float64).reshape(-1, 2)
        pairs = pairs[~np.isnan(pairs).any(axis=1)]
        ranks = rankdata(pairs, axis=0)
        enough = len(pairs) >= 3 and (np.ptp(ranks, axis=0) > 0).all()
        found[name] = (float(np.corrcoef(ranks.T)[0, 1]) if enough else np.nan, len(pairs))
    return found
