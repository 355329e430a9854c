"""One training step, written once: pure, for one device or for each of many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from penn_jax.optim.accumulate import accumulated
from penn_jax.optim.sgd import Average, averaged, init_average, skipped, update_average

Reduce = Callable[[Any], Any]
"""Sums a pytree over all devices that share the batch; the identity on one device."""

Objective = Callable[[Any, Any, Any, Reduce], tuple[Float[Array, ""], tuple[Any, dict[str, Array]]]]
"""(params, batch_stats, batch, reduce) -> (loss of the global batch, (batch_stats, metrics)).

The loss is the same on every device, since it is made of sums that went through ``reduce``.
"""


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    optimiser: Any
    average: Average
    """Bias-corrected average of (params, batch_stats), the weights used at prediction."""


def create_state(
    params: Any, batch_stats: Any, optimiser: optax.GradientTransformationExtraArgs
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        optimiser=optimiser.init(params),
        average=init_average((params, batch_stats)),
    )


def prediction_variables(state: TrainState, decay: float) -> dict[str, Any]:
    """The variables that predict: the weight average, or the weights where ``decay`` is 0."""
    params, batch_stats = averaged(state.average) if decay else (state.params, state.batch_stats)
    return {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}


def build_step(
    objective: Objective,
    optimiser: optax.GradientTransformationExtraArgs,
    decay: float,
    axis_name: str | None = None,
    parts: int = 1,
) -> Callable[[TrainState, Any, Array], tuple[TrainState, dict[str, Array]]]:
    """The pure function ``(state, batch, progress) -> (state, metrics)``.

    A step whose gradient is not finite changes nothing but the counts: not the weights, the
    momentum, the batch statistics or the average.

    Args:
        objective: what is minimised.
        optimiser: takes ``progress``, the share of the budget used, as an extra argument.
        decay: of the weight average.
        axis_name: of the ``pmap`` this step runs in; None under ``jit``, where arrays are global.
        parts: of a batch that are on the devices one after the other; see ``accumulate.py``.

    Returns:
        The step. Its metrics are the objective's, ``loss``, ``gradient_norm``,
        ``skipped_in_a_row`` and ``skipped``.
    """

    gradient_of = accumulated(objective, parts)

    def reduce(tree: Any) -> Any:
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def step(
        state: TrainState, batch: Any, progress: Float[Array, ""]
    ) -> tuple[TrainState, dict[str, Array]]:
        (loss, (batch_stats, metrics)), gradient = gradient_of(
            state.params, state.batch_stats, batch, reduce
        )
        if axis_name is not None:
            # Each device's gradient is that of the sum of all devices' (equal) losses with
            # respect to its own copy of the weights: the mean is the gradient of the one loss.
            gradient = jax.lax.pmean(gradient, axis_name)
        updates, optimiser_state = optimiser.update(
            gradient, state.optimiser, state.params, progress=progress
        )
        in_a_row, total = skipped(optimiser_state)
        finite = in_a_row == 0

        def kept(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        params = kept(optax.apply_updates(state.params, updates), state.params)
        batch_stats = kept(batch_stats, state.batch_stats)
        average = kept(update_average(state.average, (params, batch_stats), decay), state.average)
        metrics = {
            **metrics,
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            "skipped_in_a_row": in_a_row,
            "skipped": total,
        }
        return TrainState(state.step + 1, params, batch_stats, optimiser_state, average), metrics

    return step
