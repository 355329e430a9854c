"""The convolution-deconvolution network of PENN, described by a :class:`ModelConfig` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from penn_jax.config import ModelConfig
from penn_jax.model.blocks import ChannelDropout, Expand, Normalise, Reduce, Stage

Variables = Mapping[str, Any]


class Network(nn.Module):
    """Conv stages down to a coarse grid, deconvolution stages back to the input's size.

    ``reduce_0`` is the stem, ``conv_k`` and ``deconv_k`` are the stages on grid k (0 the finest),
    ``reduce_k`` leads from grid k - 1 to k, ``expand_k`` from k to k - 1, ``head_k`` to classes.

    Args of the call:
        x: patches or whole frames, (B, *spatial, C); every spatial size a multiple of
            :func:`total_stride`.
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


def check_size(spatial: tuple[int, ...], config: ModelConfig) -> None:
    """Check that the coarsest grid divides the input.

    Raises:
        ValueError: a size is not a multiple of :func:`total_stride`.
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


def halo(config: ModelConfig) -> int:
    """Voxels around a tile that its inner scores depend on, rounded up to the total stride.

    Each 3-wide convolution on grid k reaches one of its voxels further, ``stem · 2^k`` of the
    input's; aligning to the coarsest grid adds at most one total stride. Group normalisation sees
    the whole tile: no halo makes it exact.
    """
    stride = total_stride(config)
    strides = [config.stem * 2**grid for grid in range(len(config.channels))]
    reach = config.blocks * (sum(strides) + sum(strides[:-1])) + stride
    return -(-reach // stride) * stride
