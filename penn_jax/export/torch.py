"""Weights to the PyTorch twin of the network.

====================  ================================  ===========================
layer                 JAX                               PyTorch
====================  ================================  ===========================
convolution           kernel (*window, in, out)         weight (out, in, *window)
deconvolution         kernel (*window, in, out)         weight (in, out, *window)
normalisation         scale, bias                       weight, bias
running statistics    mean, var                         running_mean, running_var
====================  ================================  ===========================

Names are otherwise those of the JAX tree, joined by dots, without the part ``batch`` or ``group``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flax.traverse_util import flatten_dict

from penn_jax.config import ModelConfig
from penn_jax.export.torch_network import Network

_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def to_torch(
    variables: Mapping[str, Any],
    config: ModelConfig,
    classes: int,
    channels: int,
    dimensions: int,
) -> Network:
    """The PyTorch network with these weights, in evaluation mode.

    Args:
        variables: of the JAX network: ``params`` and, with batch norm, ``batch_stats``.
        config: of the network; its precision is left to the caller, the twin is float32.
        classes: K.
        channels: of the network's input, neighbouring slices included.
        dimensions: spatial axes.

    Returns:
        The twin: from (B, C, *spatial) to the finest scores (B, K, *spatial). Heads on coarser
        grids, which deep supervision trains, are left out.
    """
    network = Network(**network_options(config, classes, channels, dimensions))
    network.load_state_dict(torch_state(variables))
    return network.eval()


def network_options(
    config: ModelConfig, classes: int, channels: int, dimensions: int
) -> dict[str, Any]:
    """The arguments of the twin, as plain JSON types."""
    return {
        "inputs": channels,
        "classes": classes,
        "dimensions": dimensions,
        "stem": config.stem,
        "channels": list(config.channels),
        "blocks": config.blocks,
        "skip": config.skip,
        "residual": config.residual,
        "norm": config.norm,
        "dropout": config.dropout,
    }


def torch_state(variables: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Parameters and running statistics by their names and in the layouts of PyTorch."""
    state = {}
    for collection in ("params", "batch_stats"):
        for (layer, *inner, leaf), value in flatten_dict(variables.get(collection, {})).items():
            if layer.startswith("head_") and layer != "head_0":
                continue
            parts = [layer, *(part for part in inner if part not in ("batch", "group"))]
            array = np.asarray(value)
            if leaf == "kernel":
                deconvolution = layer.startswith(("expand_", "head_"))
                array = np.moveaxis(array, (-2, -1) if deconvolution else (-1, -2), (0, 1))
            name = ".".join([*parts, _NAMES.get(leaf, leaf)])
            state[name] = torch.from_numpy(np.array(array, order="C"))
    return state
