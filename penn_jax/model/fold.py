"""Batch normalisation folded into the layers before it: fewer operations, the same numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from penn_jax.config import ModelConfig
from penn_jax.model.blocks import NORM_EPSILON

Variables = Mapping[str, Any]


def fold(variables: Variables, config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """The same function of an image as a network without normalisation.

    With running statistics, batch normalisation of ``W·x`` is one more affine map::

        γ (W·x - μ) / √(σ² + ε) + β  =  (a W)·x + (β - a μ),   a = γ / √(σ² + ε)

    Products are taken in float64 and rounded once.

    Args:
        variables: ``params`` and ``batch_stats`` of a network of ``config``, on the host.
        config: of the network.

    Returns:
        Variables of ``Network(config')`` and ``config'``, which is ``config`` with norm ``none``.
        Networks of another norm are returned as they are: group statistics depend on the image.
    """
    if config.norm != "batch":
        return dict(variables), config
    params = _folded(variables["params"], variables["batch_stats"])
    return {"params": params}, dataclasses.replace(config, norm="none")


def _folded(params: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, part in params.items():
        normalised = _norm_after(name)
        if normalised in params:
            scale, bias = _affine(params[normalised]["batch"], statistics[normalised]["batch"])
            # The last axis of every kernel is its output channel.
            kernel = np.asarray(part["kernel"], np.float64) * scale
            result[name] = {"kernel": kernel.astype(np.float32)}
            result[normalised] = {"bias": bias.astype(np.float32)}
        elif name.startswith(("conv_", "deconv_")):  # a stage, with layers of its own
            result[name] = _folded(part, statistics[name])
        elif name.startswith("head_"):
            result[name] = dict(part)
    return result


def _norm_after(layer: str) -> str:
    """Name of the normalisation of a layer: ``reduce_norm_1`` of ``reduce_1``, ``norm_0`` of
    ``conv_0`` within a stage."""
    kind, _, number = layer.rpartition("_")
    return f"norm_{number}" if kind == "conv" else f"{kind}_norm_{number}"


def _affine(
    part: Mapping[str, Float32[Any, " C"]], statistics: Mapping[str, Float32[Any, " C"]]
) -> tuple[np.ndarray, np.ndarray]:
    scale, bias = (np.asarray(part[name], np.float64) for name in ("scale", "bias"))
    mean, variance = (np.asarray(statistics[name], np.float64) for name in ("mean", "var"))
    slope = scale / np.sqrt(variance + NORM_EPSILON)
    return slope, bias - slope * mean
