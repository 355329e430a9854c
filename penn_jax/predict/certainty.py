"""How sure a network is: the entropy of a voxel, and what it expects of its own mask."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8


def entropy(probabilities: Float[np.ndarray, "*voxels K"]) -> Float32[np.ndarray, "*voxels"]:
    """H = -Σₖ pₖ ln pₖ / ln K: 0 where one class is certain, 1 where all K are equally likely.

    Class by class, so that what is held besides the result does not grow with K.
    """
    classes = probabilities.shape[-1]
    total = np.zeros(probabilities.shape[:-1], np.float32)
    for number in range(classes):
        likely = probabilities[..., number].astype(np.float32)
        # The limit of p ln p at 0 is 0; interpolation may leave the last digit below it.
        total -= likely * np.log(np.maximum(likely, np.float32(1e-30)))
    return np.clip(total / np.float32(math.log(classes)), 0.0, 1.0)


def overlap_sums(
    probabilities: Float[np.ndarray, "*voxels K"], mask: UInt8[np.ndarray, "*voxels"]
) -> Float64[np.ndarray, "3 foreground"]:
    """Σ pₖ mₖ, Σ pₖ and Σ mₖ of each foreground class; those of a scan's parts add up.

    Args:
        probabilities: pₖ.
        mask: the class chosen for each voxel; mₖ is 1 where it is k.
    """
    sums = np.zeros((3, probabilities.shape[-1] - 1))
    for column, number in enumerate(range(1, probabilities.shape[-1])):
        likely, chosen = probabilities[..., number], mask == number
        sums[0, column] = likely.sum(where=chosen, dtype=np.float64)
        sums[1, column] = likely.sum(dtype=np.float64)
        sums[2, column] = np.count_nonzero(chosen)
    return sums


def inside_probability(
    sums: Float64[np.ndarray, "3 foreground"],
) -> Float64[np.ndarray, " foreground"]:
    """Σ pₖ mₖ / Σ mₖ of each foreground class; NaN where the mask has none of it.

    The precision that the network expects. Of the estimates compared in ``benchmarks/quality.py``
    the one that goes along best with the true Dice of cases that were not trained on.

    Args:
        sums: of the whole scan, as :func:`overlap_sums` gives them.
    """
    both, _, chosen = sums
    return np.where(chosen > 0, both / np.maximum(chosen, 1), np.nan)


def expected_dice(
    sums: Float64[np.ndarray, "3 foreground"],
) -> Float64[np.ndarray, " foreground"]:
    """2 Σ pₖ mₖ / (Σ pₖ + Σ mₖ) of each foreground class; NaN where the mask has none of it.

    Were the probabilities right, this would be close to the mean Dice of the mask over the
    references that are possible: 2 E Σ rₖ mₖ / E (Σ rₖ + Σ mₖ), with rₖ one with probability pₖ.

    Args:
        sums: of the whole scan, as :func:`overlap_sums` gives them.
    """
    both, likely, chosen = sums
    return np.where(chosen > 0, 2 * both / np.maximum(likely + chosen, 1e-30), np.nan)
