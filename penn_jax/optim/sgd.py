"""The enhanced SGD as an Optax chain, its comparison AdamW, and the average of the weights.

The learning rate's course comes from outside, so that a budget in steps and one in seconds are
the same to the optimiser:

    updates, state = optimiser.update(gradients, state, parameters, progress=progress)
    parameters = optax.apply_updates(parameters, updates)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Int32, PyTree

from penn_jax.config import OptimConfig
from penn_jax.optim.schedule import relative_rate

_SHARE = 0.1
"""Of the steps made so far, what the average of the weights looks back on at most."""
_NEVER = jnp.iinfo(jnp.int32).max
"""Optax's count of skipped steps stops here, so it never takes a step that it should skip."""


def build_optimiser(
    config: OptimConfig, pretrained: PyTree[bool] | None = None
) -> optax.GradientTransformationExtraArgs:
    """The chain of the enhanced SGD, most parts of which can be switched off.

        1. clip          g ← g · min(1, c / ‖g‖₂)
        2. centralise    g ← g - mean(g) for each output channel of a kernel
        3. weight decay  g ← g + λw, kernels only
        4. momentum      m ← μm + g;  d = g + μm  (Nesterov) or d = m
        5. step          w ← w - η_t d, η_t = learning rate · ``relative_rate``
        6. rates         pre-trained parts step at a share of η_t, or at first not at all
        7. skip          nothing at all changes where the gradient is not finite

    With ``name="adamw"``, parts 3 and 4 are Adam's moments (β = 0.9, 0.999, ε = 1e-8) followed
    by the decoupled decay d ← d + λw; the others are the same.

    Args:
        config: the settings; fixed when the step is compiled.
        pretrained: for each parameter, or for a whole subtree, whether it was loaded from a
            pre-trained run; None where there is none.

    Returns:
        A transformation of the global mean gradient. ``update`` needs the parameters and the
        keyword ``progress``, the share of the budget used so far (see ``relative_rate``).

    Reference:
        Sutskever et al., "On the importance of initialization and momentum", 2013; Yong et al.,
        "Gradient centralization", 2020; Loshchilov and Hutter, "Decoupled weight decay", 2019.
    """
    off = optax.identity()
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip > 0 else off,
        optax.masked(optax.stateless(_centralise), kernels) if config.centralise else off,
        *_direction(config),
        _scale_by_progress(config),
        optax.masked(_scale_pretrained(config), pretrained) if pretrained else off,
    )
    return optax.with_extra_args_support(optax.apply_if_finite(chain, _NEVER))


def kernels(parameters: PyTree) -> PyTree[bool]:
    """Which parameters are kernels: the leaves of that name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel",
        parameters,
    )


def skipped(state: PyTree) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """How many steps were skipped because their gradient was not finite.

    Args:
        state: the state of ``build_optimiser``'s transformation.

    Returns:
        Those in a row up to and with the last step (0: the last step was taken), and all.
    """
    return state.notfinite_count, state.total_notfinite


def _direction(config: OptimConfig) -> tuple[optax.GradientTransformation, ...]:
    """From the gradient to the direction d, in which the step is taken."""
    decay = optax.add_decayed_weights(config.weight_decay, mask=kernels)
    if config.name == "adamw":
        return optax.scale_by_adam(), decay
    if config.momentum == 0:
        return (decay,)
    return decay, optax.trace(config.momentum, nesterov=config.nesterov)


def _centralise(gradients: PyTree, parameters: PyTree | None = None) -> PyTree:
    """g - mean of g over all axes but the last, the output channel.

    ``optax.centralize`` keeps the first axis instead, where PyTorch has the output channel. A
    kernel with a single weight for each output channel is left alone: it would never move.
    """
    del parameters

    def centralise(gradient):
        if gradient.size == gradient.shape[-1]:
            return gradient
        return gradient - gradient.mean(axis=tuple(range(gradient.ndim - 1)), keepdims=True)

    return jax.tree.map(centralise, gradients)


def _scale_by_progress(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """d ← -η_t d, with η_t from the keyword ``progress`` instead of a count of steps."""

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: ArrayLike
    ) -> tuple[PyTree, Any]:
        del params
        rate = config.learning_rate * relative_rate(extra["progress"], config)
        return jax.tree.map(lambda direction: -rate * direction, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _scale_pretrained(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """d ← 0 while they are frozen, then d ← share · d, by the keyword ``progress``."""

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: ArrayLike
    ) -> tuple[PyTree, Any]:
        del params
        frozen = jnp.asarray(extra["progress"], jnp.float32) < config.frozen
        share = jnp.where(frozen, 0.0, config.pretrained_rate)
        return jax.tree.map(lambda direction: share * direction, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


class Average(NamedTuple):
    """A running average of a tree; build it with ``init_average``."""

    mean: PyTree[Float32[Array, " ..."]]
    total: Float32[Array, ""]
    """How many trees count: the sum of the weights of those seen, that of the newest being 1."""


def init_average(tree: PyTree) -> Average:
    """An average that has seen nothing; until it does, ``averaged`` gives back ``tree``.

    Args:
        tree: parameters or batch statistics; copied, so that both may be donated to one step.
    """
    copy = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), tree)
    return Average(copy, jnp.zeros((), jnp.float32))


def update_average(average: Average, tree: PyTree, decay: ArrayLike) -> Average:
    """Take one more tree into an exponential average that at first looks back less far.

        W_n = max(1, min(1 + decay · W_{n-1}, W_{n-1} + 1/10))
        a_n = a_{n-1} + (x_n - a_{n-1}) / W_n

    W trees count, in a long run 1 / (1 - decay) of them. Until then they are a tenth of those seen,
    the k-th weighted about as k^9: early weights, far from where the run is by then, fade away. The
    first tree counts in full, and no correction 1 - decay^n, in which float32 loses digits, is ever
    formed.

    Args:
        average: from ``init_average`` or this function.
        tree: the newest tree of the same structure.
        decay: in [0, 1); 0 keeps the newest tree as it is.

    Returns:
        The new average, float32.

    Reference:
        Polyak and Juditsky, 1992; Karras et al., "Analyzing and improving the training dynamics of
        diffusion models", 2024, section 3.1, for weights that are a power of the step.
    """
    total = jnp.minimum(
        1.0 + jnp.asarray(decay, jnp.float32) * average.total, average.total + _SHARE
    )
    total = jnp.maximum(total, 1.0)
    mean = jax.tree.map(
        # Where W is 1, a + (x - a) would still round.
        lambda old, new: jnp.where(total == 1.0, new, old + (new - old) / total),
        average.mean,
        jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree),
    )
    return Average(mean, total)


def averaged(average: Average) -> PyTree[Float32[Array, " ..."]]:
    """The average, float32."""
    return average.mean
