"""Cross-entropy + soft Dice, as sums that merge over devices before any ratio is taken."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from penn_jax.config import LossConfig
from penn_jax.types import IGNORE_LABEL

DICE_SMOOTHING = 1.0
"""Voxels added to numerator and denominator: a class absent from batch and prediction costs 0."""


class LossSums(NamedTuple):
    """What the loss needs of a batch; sums over voxels, so shards add up (float32)."""

    cross_entropy: Float[Array, ""]
    voxels: Float[Array, ""]
    overlap: Float[Array, " K"]
    predicted: Float[Array, " K"]
    reference: Float[Array, " K"]


def loss_sums(logits: Float[Array, "B *spatial K"], label: UInt8[Array, "B *spatial"]) -> LossSums:
    """Sums of one score map against its labels; voxels labelled 255 are left out.

    Args:
        logits: class scores, float32.
        label: class numbers in 0..K-1, or 255.
    """
    classes = logits.shape[-1]
    valid = (label != IGNORE_LABEL).astype(jnp.float32)
    target = jax.nn.one_hot(label, classes, dtype=jnp.float32)  # 255 gives a row of zeros
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    probability = jnp.exp(log_probability) * valid[..., None]
    voxel_axes = tuple(range(label.ndim))
    return LossSums(
        cross_entropy=-jnp.sum(target * log_probability),
        voxels=jnp.sum(valid),
        overlap=jnp.sum(probability * target, axis=voxel_axes),
        predicted=jnp.sum(probability, axis=voxel_axes),
        reference=jnp.sum(target, axis=voxel_axes),
    )


def loss_value(sums: LossSums, config: LossConfig) -> Float[Array, ""]:
    """The loss of a whole (global) batch.

    ``L = a · CE / N + b · mean over foreground k of (1 - (2·O_k + s) / (P_k + R_k + s))``

    with CE the summed cross-entropy, N the voxels, O the overlap, P and R the predicted and
    reference volumes, s = 1 voxel: batch Dice, finite for an empty foreground.

    Reference: Milletari et al., V-Net, 3DV 2016 (soft Dice); Isensee et al., nnU-Net, Nature
    Methods 18, 2021 (the sum of both, Dice over the batch).
    """
    cross_entropy = sums.cross_entropy / jnp.maximum(sums.voxels, 1.0)
    dice = (2.0 * sums.overlap + DICE_SMOOTHING) / (
        sums.predicted + sums.reference + DICE_SMOOTHING
    )
    return config.cross_entropy * cross_entropy + config.dice * jnp.mean(1.0 - dice[1:])


def coarser_labels(
    label: UInt8[Array, "B *spatial"], grid: tuple[int, ...]
) -> UInt8[Array, "B *grid"]:
    """Labels for a coarser score map: the voxel at the centre of each block."""
    for axis, (fine, coarse) in enumerate(zip(label.shape[1:], grid, strict=True), start=1):
        step = fine // coarse
        label = jax.lax.slice_in_dim(label, step // 2, None, stride=step, axis=axis)
    return label
