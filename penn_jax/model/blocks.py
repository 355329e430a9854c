"""The layers of the network, for any number of spatial axes.

Reduction and expansion have kernel = stride, so each is one matrix product and a reordering of
pixels: the results of ``Conv`` and ``ConvTranspose``, with gradients that are far cheaper on a CPU.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from penn_jax.model.convolution import WIDTH, convolve

Dtype = Literal["float32", "bfloat16"]

BATCH_NORM_MOMENTUM = 0.9
NORM_EPSILON = 1e-5
GROUP_CHANNELS = 8
"""Channels of one group in group normalisation."""


def space_to_depth(x: Float[Array, "B *spatial C"], factor: int) -> Float[Array, "B *coarse D"]:
    """Move each ``factor``-wide block of pixels into the channels: (…, H·f, C) -> (…, H, f·C)."""
    batch, *spatial, channels = x.shape
    axes = len(spatial)
    split = [part for size in spatial for part in (size // factor, factor)]
    x = x.reshape(batch, *split, channels)
    order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    coarse = [size // factor for size in spatial]
    return x.transpose(order).reshape(batch, *coarse, factor**axes * channels)


def depth_to_space(x: Float[Array, "B *coarse D"], factor: int) -> Float[Array, "B *spatial C"]:
    """The inverse of :func:`space_to_depth`."""
    batch, *coarse, depth = x.shape
    axes = len(coarse)
    channels = depth // factor**axes
    x = x.reshape(batch, *coarse, *[factor] * axes, channels)
    order = (0, *[i for axis in range(axes) for i in (1 + axis, 1 + axes + axis)], 2 * axes + 1)
    return x.transpose(order).reshape(batch, *[size * factor for size in coarse], channels)


class Reduce(nn.Module):
    """Convolution with kernel = stride = ``factor`` and no padding.

    ``y[b, p, o] = bias[o] + sum over k, c of kernel[k, c, o] · x[b, factor·p + k, c]``; equal to
    ``torch.nn.Conv(kernel_size=factor, stride=factor)``. The kernel is (factor, …, in, out).
    """

    features: int
    factor: int = 2
    use_bias: bool = False
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B *spatial C"]) -> Float[Array, "B *coarse O"]:
        window = (self.factor,) * (x.ndim - 2)
        kernel = self.param(
            "kernel", nn.initializers.he_normal(), (*window, x.shape[-1], self.features)
        )
        y = space_to_depth(x.astype(self.dtype), self.factor)
        y = y @ kernel.reshape(-1, self.features).astype(self.dtype)
        if self.use_bias:
            y = y + _bias(self, self.features, y)
        return y


class Convolve(nn.Module):
    """Convolution three wide, stride 1, with zeros around: as large as its input.

    Equal to ``torch.nn.Conv(kernel_size=3, padding=1, bias=False)``. The kernel is
    (3, …, in, out).
    """

    features: int
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B *spatial C"]) -> Float[Array, "B *spatial O"]:
        window = (WIDTH,) * (x.ndim - 2)
        kernel = self.param(
            "kernel", nn.initializers.he_normal(), (*window, x.shape[-1], self.features)
        )
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype))


class Expand(nn.Module):
    """Transposed convolution (deconvolution) with kernel = stride = ``factor``.

    ``y[b, factor·p + k, o] = bias[o] + sum over c of kernel[k, c, o] · x[b, p, c]``; equal to
    ``torch.nn.ConvTranspose(kernel_size=factor, stride=factor)``. The kernel is
    (factor, …, in, out).
    """

    features: int
    factor: int = 2
    use_bias: bool = False
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B *coarse C"]) -> Float[Array, "B *spatial O"]:
        axes = x.ndim - 2
        channels = x.shape[-1]
        # Each output pixel sees one kernel position, so the fan-in is the channels alone.
        scale = math.sqrt(2.0 / channels)
        kernel = self.param(
            "kernel",
            nn.initializers.normal(scale),
            (*(self.factor,) * axes, channels, self.features),
        )
        matrix = jnp.moveaxis(kernel, -2, 0).reshape(channels, -1).astype(self.dtype)
        y = depth_to_space(x.astype(self.dtype) @ matrix, self.factor)
        if self.use_bias:
            y = y + _bias(self, self.features, y)
        return y


def _bias(module: nn.Module, features: int, like: Array) -> Array:
    bias = module.param("bias", nn.initializers.zeros_init(), (features,))
    return bias.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (features,))


class Normalise(nn.Module):
    """Batch, group or no normalisation, statistics in float32.

    Args of the call:
        x: features, (B, *spatial, C).
        train: batch statistics (and their running mean) when true, running statistics when not.
        axis_name: the ``pmap`` axis over which batch statistics are averaged, if any.
    """

    kind: Literal["batch", "group", "none"]
    dtype: Dtype = "float32"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B *spatial C"], train: bool) -> Array:
        if self.kind == "batch":
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=BATCH_NORM_MOMENTUM,
                epsilon=NORM_EPSILON,
                dtype=self.dtype,
                axis_name=self.axis_name if train else None,
                name="batch",
            )(x)
        if self.kind == "group":
            # GROUP_CHANNELS each where that divides the channels; always a divisor.
            groups = math.gcd(x.shape[-1], max(1, x.shape[-1] // GROUP_CHANNELS))
            return nn.GroupNorm(
                num_groups=groups, epsilon=NORM_EPSILON, dtype=self.dtype, name="group"
            )(x)
        return x + _bias(self, x.shape[-1], x)


class ChannelDropout(nn.Module):
    """Drop whole channels of each sample, keyed by the sample, not by its place in the batch."""

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *spatial C"], sample_keys: Key[Array, " B"] | None
    ) -> Array:
        if self.rate == 0.0 or sample_keys is None:
            return x
        keep = 1.0 - self.rate
        draw = jax.vmap(lambda key: jax.random.bernoulli(key, keep, (x.shape[-1],)))(sample_keys)
        mask = (draw / keep).astype(x.dtype)
        return x * mask.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])


class Stage(nn.Module):
    """``blocks`` times: 3-wide convolution, normalisation, leaky rectifier."""

    features: int
    blocks: int
    norm: Literal["batch", "group", "none"]
    residual: bool = False
    dtype: Dtype = "float32"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B *spatial C"], train: bool) -> Array:
        first = None
        for block in range(self.blocks):
            x = Convolve(self.features, self.dtype, name=f"conv_{block}")(x)
            x = Normalise(self.norm, self.dtype, self.axis_name, name=f"norm_{block}")(x, train)
            if self.residual and first is not None and block == self.blocks - 1:
                x = x + first
            x = nn.leaky_relu(x)
            first = x if first is None else first
        return x
