"""The convolution-deconvolution network of PENN, described by a :class:`ModelConfig` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from penn_jax.config import ModelConfig
from penn_jax.model.blocks import ChannelDropout, Convolve, Expand, Normalise, Reduce, Stage

Variables = Mapping[str, Any]


class Network(nn.Module):
    """Conv stages down to a coarse grid, deconvolution stages back to the input's size.

    ``reduce_0`` is the stem, ``conv_k`` and ``deconv_k`` are the stages on grid k (0 the finest),
    ``reduce_k`` leads from grid k - 1 to k, ``expand_k`` from k to k - 1, ``head_k`` to classes.

    Args of the call:
        x: patches or whole frames, (B, *spatial, C); every spatial size a multiple of
            ``total_stride``.
        train: use and update batch statistics, drop channels.
        sample_keys: one key a sample for dropout; none is needed where dropout is 0.

    Returns:
        Class scores (logits), float32, finest first: one array (B, *spatial, K); while training
        with deep supervision also the coarser ones, each half the size of the one before.
    """

    config: ModelConfig
    classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B *spatial C"],
        train: bool = False,
        sample_keys: Key[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B *grid K"], ...]:
        config = self.config
        stages = len(config.channels)
        dtype = config.precision
        check_size(x.shape[1:-1], config)

        def stage(name: str, grid: int) -> Stage:
            return Stage(
                features=config.channels[grid],
                blocks=config.blocks,
                norm=config.norm,
                residual=config.residual,
                dtype=dtype,
                axis_name=self.axis_name,
                name=name,
            )

        def normalised(x: Array, name: str) -> Array:
            norm = Normalise(config.norm, dtype, self.axis_name, name=name)
            return nn.leaky_relu(norm(x, train))

        skips = []
        for grid, features in enumerate(config.channels):
            factor = config.stem if grid == 0 else 2
            if factor > 1:
                x = Reduce(features, factor, dtype=dtype, name=f"reduce_{grid}")(x)
                x = normalised(x, f"reduce_norm_{grid}")
            x = stage(f"conv_{grid}", grid)(x, train)
            skips.append(x)

        x = ChannelDropout(config.dropout, name="dropout")(x, sample_keys if train else None)

        scores = []
        for grid in range(stages - 2, -1, -1):
            x = Expand(config.channels[grid], dtype=dtype, name=f"expand_{grid + 1}")(x)
            x = normalised(x, f"expand_norm_{grid + 1}")
            if config.skip == "concat":
                x = jnp.concatenate([x, skips[grid]], axis=-1)
            elif config.skip == "add":
                x = x + skips[grid]
            x = stage(f"deconv_{grid}", grid)(x, train)
            if grid == 0 or (config.deep_supervision and (train or self.is_initializing())):
                head = Expand(
                    self.classes, config.stem, use_bias=True, dtype=dtype, name=f"head_{grid}"
                )
                scores.append(head(x).astype(jnp.float32))
        if stages == 1:
            head = Expand(self.classes, config.stem, use_bias=True, dtype=dtype, name="head_0")
            scores.append(head(x).astype(jnp.float32))
        return tuple(reversed(scores))


def total_stride(config: ModelConfig) -> int:
    """Voxels of the input that one voxel of the coarsest grid spans along an axis."""
    return config.stem * 2 ** (len(config.channels) - 1)


def check_size(spatial: tuple[Any, ...], config: ModelConfig) -> None:
    """Check that the coarsest grid divides the input, whose sizes may be jax's symbols.

    Raises:
        ValueError: a size is not a multiple of ``total_stride``.
    """
    stride = total_stride(config)
    if any(size % stride for size in spatial):
        raise ValueError(
            f"input of {spatial} voxels: each size must be a multiple of {stride}, "
            f"the network's total stride"
        )


def initialise(
    network: Network, key: Key[Array, ""], channels: int, dimensions: int
) -> dict[str, Any]:
    """Draw the network's variables: ``params`` and, with batch norm, ``batch_stats``."""
    size = (total_stride(network.config),) * dimensions
    # Jitted: an eager initialisation compiles every operation on its own, ten times slower.
    return jax.jit(network.init)(key, jnp.zeros((1, *size, channels), jnp.float32))


def parameter_count(variables: Variables) -> int:
    """Number of trained values."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def scores_within(
    network: Network,
    variables: Variables,
    x: Float[Array, "B *spatial C"],
    low: Int[Array, " axes"],
    high: Int[Array, " axes"],
) -> Float[Array, "B *spatial K"]:
    """Scores of the part ``low ≤ voxel < high`` of an array, as if the array were that part alone.

    Arrays of few sizes can so hold images of many: every 3-wide convolution, the only layer that
    looks beyond a voxel of its grid, is given zeros outside the part, as at the end of an array.

    Args:
        network: without group normalisation, which sees the whole array.
        variables: of the network.
        x: (B, *spatial, C); what lies outside the part is never used.
        low: first voxel of the part along each axis, a multiple of ``total_stride``.
        high: its end, likewise.

    Returns:
        Finest class scores; those outside the part mean nothing.
    """
    size = x.shape[1:-1]

    def bounded(call: Any, arguments: tuple[Any, ...], options: Any, context: Any) -> Any:
        if not isinstance(context.module, Convolve):
            return call(*arguments, **options)
        features = arguments[0]
        for axis, (whole, length) in enumerate(zip(size, features.shape[1:-1], strict=True)):
            place = jnp.arange(length) * (whole // length)
            inside = (place >= low[axis]) & (place < high[axis])
            around = [1] * features.ndim
            around[1 + axis] = length
            features = jnp.where(inside.reshape(around), features, 0)
        return call(features, *arguments[1:], **options)

    with nn.intercept_methods(bounded):
        return network.apply(variables, x)[0]


def halo(config: ModelConfig) -> int:
    """Voxels around a tile on which its scores depend, in whole total strides.

    The scores of voxels whose bounds are multiples of the total stride S are followed back to the
    input: on grid k, of voxels s_k wide, the region first grows to whole voxels, then by one for
    each of the b convolutions::

        r ← ⌈r / s_k⌉ s_k + b s_k     for the deconvolution stages, finest to coarsest, then for
                                      the conv stages, coarsest to finest

    and ⌈r / S⌉ S, since tiles start at multiples of S. Skip connections see less. Group
    normalisation sees the whole tile: no halo makes it exact.
    """
    strides = [config.stem * 2**grid for grid in range(len(config.channels))]
    reach = 0
    for width in strides[:-1] + strides[::-1]:
        reach = _up_to_multiple(reach, width) + config.blocks * width
    return _up_to_multiple(reach, strides[-1])


def _up_to_multiple(length: int, of: int) -> int:
    return -(-length // of) * of


def evaluation_bytes(config: ModelConfig, dimensions: int, channels: int, classes: int) -> float:
    """Bytes that evaluating the network holds at once for each voxel of the input.

    A stated model, not a measurement: float32 feature maps of c_k channels on grid k take
    ``m_k = 4 c_k / s_k^d`` bytes a voxel, and the most that is alive together is either

    - a stage: its input and output and, with skips, those of the finer grids and its own, joined:
      ``m_0 + … + m_(k-1) + n m_k`` with n = 4 (``concat``), 3 (``add`` or residual) or 2; or
    - the head: ``m_0``, the logits, the probabilities, and those of the batch before,

    besides the input and the one before.

    Args:
        config: of the network.
        dimensions: d, spatial axes.
        channels: of the input.
        classes: of the output.
    """
    maps = [
        features / (config.stem * 2**grid) ** dimensions
        for grid, features in enumerate(config.channels)
    ]
    copies = max({"concat": 4, "add": 3, "none": 2}[config.skip], 3 if config.residual else 2)
    held = maps if config.skip != "none" else [0.0] * len(maps)
    stages = [sum(held[:grid]) + copies * own for grid, own in enumerate(maps)]
    return 4.0 * (2 * channels + max(*stages, maps[0] + 3 * classes))
