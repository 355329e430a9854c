"""Gradient accumulation: a batch in parts, for those that do not fit the devices' memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Gradient = Callable[[Any, Any, Any, Callable[[Any], Any]], tuple[tuple[Any, Any], Any]]
"""(params, batch_stats, batch, reduce) -> ((loss, (batch_stats, metrics)), gradient)."""


def accumulated(objective: Any, parts: int) -> Gradient:
    """Loss and gradient of a batch whose parts are on the devices one after the other.

    The loss is a function of sums over samples, L = f(Σ_m s_m(θ)), and no mean of the parts'
    losses (Dice is none). Its gradient is Σ_m f'(Σ s) · ∇s_m: a first pass makes the sums, a second
    one differentiates each part with the sums of all in place of its own. That costs one more
    forward pass, and the activations of one part are all that is held.

    Equal to the whole batch up to the order of float32 sums, with one exception: batch
    normalisation takes its statistics from each part, and updates the running ones as often.

    Args:
        objective: an ``optim.step.Objective``.
        parts: how many; 1 is the whole batch at once, without the further pass.

    Returns:
        As ``jax.value_and_grad`` with auxiliary output; for more than one part the batch has a
        further axis in front, of the parts.
    """
    whole = jax.value_and_grad(objective, has_aux=True)
    if parts == 1:
        return whole

    def gradient(params: Any, batch_stats: Any, batch: Any, reduce: Any) -> Any:
        def sums_of(part: Any) -> list[Any]:
            seen: list[Any] = []

            def see(tree: Any) -> Any:
                seen.append(tree)
                return tree

            objective(params, batch_stats, part, see)
            return seen

        first = jax.tree.map(lambda x: x[0], batch)
        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(sums_of, first))
        sums, _ = jax.lax.scan(
            lambda total, part: (jax.tree.map(jnp.add, total, sums_of(part)), None), nothing, batch
        )
        totals = reduce(sums)

        def differentiate(carry: Any, part: Any) -> Any:
            batch_stats, gradient = carry
            left = iter(totals)

            def as_part_of_all(tree: Any) -> Any:
                # The value of all parts, the derivative of this one.
                return jax.tree.map(
                    lambda total, own: total + (own - jax.lax.stop_gradient(own)),
                    next(left),
                    reduce(tree),
                )

            (loss, (batch_stats, metrics)), more = whole(params, batch_stats, part, as_part_of_all)
            return (batch_stats, jax.tree.map(jnp.add, gradient, more)), (loss, metrics)

        start = (batch_stats, jax.tree.map(jnp.zeros_like, params))
        (batch_stats, total), told = jax.lax.scan(differentiate, start, batch)
        loss, metrics = jax.tree.map(lambda x: x[-1], told)  # equal for all parts
        return (loss, (batch_stats, metrics)), total

    return gradient
