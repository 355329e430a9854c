"""The learning rate's course, as a function of the share of the budget that is used up."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float32

from penn_jax.config import OptimConfig


def relative_rate(progress: ArrayLike, config: OptimConfig) -> Float32[Array, ""]:
    """The learning rate as a share of ``config.learning_rate``.

        r(s) = min(s / w, 1) · f(t),   t = max(s - w, 0) / (1 - w)
        f(t) = (1 - t)^p  (poly),  (1 + cos πt) / 2  (cosine),  1  (constant)

    with progress s and the warm-up's share w. It is continuous, 0 at s = 0 unless w = 0, and,
    but for ``constant``, 0 at s = 1: a loop over N steps that passes s = (step + ½) / N wastes
    neither its first nor its last step.

    Args:
        progress: scalar, share of the run's steps or seconds used so far. Values outside
            [0, 1] count as the nearer end: a clock can run past its budget.
        config: ``schedule``, ``warmup`` and ``power`` are read.

    Returns:
        Scalar in [0, 1].

    Reference:
        poly: Chen et al., "DeepLab", 2018. Cosine: Loshchilov and Hutter, "SGDR", 2017.
    """
    progress = jnp.clip(jnp.asarray(progress, jnp.float32), 0.0, 1.0)
    # The two ends of the warm-up's range would divide by zero.
    climb = jnp.minimum(progress / config.warmup, 1.0) if config.warmup > 0 else 1.0
    rest = 1.0 - config.warmup
    t = jnp.clip((progress - config.warmup) / rest, 0.0, 1.0) if rest > 0 else jnp.zeros(())
    match config.schedule:
        case "poly":
            fall = (1.0 - t) ** config.power
        case "cosine":
            fall = 0.5 * (1.0 + jnp.cos(jnp.pi * t))
        case "constant":
            fall = jnp.ones(())
    return climb * fall
