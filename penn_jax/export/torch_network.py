"""The network of penn_jax in plain PyTorch. This file needs torch alone and can be copied.

Layers bear the names that they have in JAX: ``reduce_0`` is the stem, ``conv_k`` and ``deconv_k``
are the stages on grid k (0 the finest), ``reduce_k`` leads from grid k - 1 to k, ``expand_k`` from
k to k - 1, ``head_0`` to the classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import leaky_relu

GROUP_CHANNELS = 8
"""Channels of one group in group normalisation."""

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_DECONVOLUTION = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}


class Network(nn.Module):
    """Conv stages down to a coarse grid, deconvolution stages back to the input's size.

    Args:
        inputs: channels of the image, slices beside it included.
        classes: K.
        dimensions: spatial axes, 2 or 3.
        stem: stride of the first convolution and of the last deconvolution.
        channels: features of each stage; each stage after the first halves the grid.
        blocks: 3-wide convolutions in each stage.
        skip: how a conv stage's features join the deconvolution stage of the same grid.
        residual: each stage adds its first feature map to its last.
        norm: ``batch``, ``group`` or ``none`` (a bias).
        dropout: share of the deepest stage's channels dropped while training.

    Args of the call:
        x: images, (B, C, *spatial); every spatial size a multiple of stem · 2^(stages - 1).

    Returns:
        Class scores (logits), (B, K, *spatial).
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        dimensions: int,
        stem: int,
        channels: Sequence[int],
        blocks: int,
        skip: Literal["concat", "add", "none"],
        residual: bool,
        norm: Literal["batch", "group", "none"],
        dropout: float = 0.0,
    ):
        super().__init__()
        self.stages, self.stem, self.skip = len(channels), stem, skip
        convolution, deconvolution = _CONVOLUTION[dimensions], _DECONVOLUTION[dimensions]
        before = inputs
        for grid, features in enumerate(channels):
            factor = stem if grid == 0 else 2
            if factor > 1:
                reduce = convolution(before, features, factor, stride=factor, bias=False)
                self.add_module(f"reduce_{grid}", reduce)
                self.add_module(f"reduce_norm_{grid}", normalisation(norm, features, dimensions))
                before = features
            stage = Stage(before, features, blocks, residual, norm, dimensions)
            self.add_module(f"conv_{grid}", stage)
            before = features
        self.dropout = _DROPOUT[dimensions](dropout)
        for grid in range(self.stages - 2, -1, -1):
            features = channels[grid]
            expand = deconvolution(channels[grid + 1], features, 2, stride=2, bias=False)
            self.add_module(f"expand_{grid + 1}", expand)
            self.add_module(f"expand_norm_{grid + 1}", normalisation(norm, features, dimensions))
            before = 2 * features if skip == "concat" else features
            stage = Stage(before, features, blocks, residual, norm, dimensions)
            self.add_module(f"deconv_{grid}", stage)
        self.head_0 = deconvolution(channels[0], classes, stem, stride=stem)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.get_submodule
        skips = []
        for grid in range(self.stages):
            if grid > 0 or self.stem > 1:
                x = leaky_relu(layer(f"reduce_norm_{grid}")(layer(f"reduce_{grid}")(x)))
            x = layer(f"conv_{grid}")(x)
            skips.append(x)
        x = self.dropout(x)
        for grid in range(self.stages - 2, -1, -1):
            x = leaky_relu(layer(f"expand_norm_{grid + 1}")(layer(f"expand_{grid + 1}")(x)))
            if self.skip == "concat":
                x = torch.cat([x, skips[grid]], dim=1)
            elif self.skip == "add":
                x = x + skips[grid]
            x = layer(f"deconv_{grid}")(x)
        return self.head_0(x)


class Stage(nn.Module):
    """``blocks`` times: 3-wide convolution, normalisation, leaky rectifier."""

    def __init__(
        self,
        inputs: int,
        features: int,
        blocks: int,
        residual: bool,
        norm: Literal["batch", "group", "none"],
        dimensions: int,
    ):
        super().__init__()
        self.blocks, self.residual = blocks, residual and blocks > 1
        for block in range(blocks):
            before = inputs if block == 0 else features
            convolution = _CONVOLUTION[dimensions](before, features, 3, padding=1, bias=False)
            self.add_module(f"conv_{block}", convolution)
            self.add_module(f"norm_{block}", normalisation(norm, features, dimensions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.get_submodule
        x = first = leaky_relu(layer("norm_0")(layer("conv_0")(x)))
        for block in range(1, self.blocks):
            x = layer(f"norm_{block}")(layer(f"conv_{block}")(x))
            if self.residual and block == self.blocks - 1:
                x = x + first
            x = leaky_relu(x)
        return x


class Bias(nn.Module):
    """What stands where nothing is normalised."""

    def __init__(self, features: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias.view(-1, *[1] * (x.ndim - 2))


def normalisation(
    norm: Literal["batch", "group", "none"], features: int, dimensions: int
) -> nn.Module:
    """The layer after a convolution; its epsilon of 1e-5 is PyTorch's own."""
    if norm == "batch":
        return _BATCH_NORM[dimensions](features)
    if norm == "group":
        return nn.GroupNorm(math.gcd(features, max(1, features // GROUP_CHANNELS)), features)
    return Bias(features)
