"""Weights by the names and in the layouts of PyTorch, and back; PyTorch itself is not needed.

====================  ================================  ===========================
layer                 JAX                               PyTorch
====================  ================================  ===========================
convolution           kernel (*window, in, out)         weight (out, in, *window)
deconvolution         kernel (*window, in, out)         weight (in, out, *window)
normalisation         scale, bias                       weight, bias
running statistics    mean, var                         running_mean, running_var
====================  ================================  ===========================

Names are otherwise those of the JAX tree, joined by dots, without the part ``batch`` or ``group``.
Both ways only move values: there and back is the identity bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors import numpy as tensors

from penn_jax.config import ModelConfig
from penn_jax.types import InputError

_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_COUNTER = "num_batches_tracked"
"""Kept by PyTorch's batch normalisation; what it counts changes nothing here."""


def network_options(
    config: ModelConfig, classes: int, channels: int, dimensions: int
) -> dict[str, Any]:
    """The arguments of the PyTorch network, as plain JSON types."""
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
        "deep_supervision": config.deep_supervision,
    }


def torch_state(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters and running statistics as PyTorch calls and lays them out.

    Args:
        variables: of the JAX network: ``params`` and, with batch norm, ``batch_stats``.
    """
    state = {}
    for path, value in flatten_dict(dict(variables)).items():
        array = np.asarray(value)
        if path[-1] == "kernel":
            array = np.moveaxis(array, (-1, -2), _places(path))
        state[_torch_name(path)] = np.array(array, order="C")
    return state


def jax_variables(
    state: Mapping[str, np.ndarray], like: Mapping[str, Any], source: Path
) -> dict[str, Any]:
    """The variables of the JAX network from a PyTorch state dict: the inverse of ``torch_state``.

    Args:
        state: arrays by their names in PyTorch.
        like: the network's variables, or only their shapes.
        source: of the state, for the messages.

    Raises:
        InputError: an array is missing, of another shape or type, not finite, or not of this
            network; the first one is named.
    """
    result: dict[tuple[str, ...], np.ndarray] = {}
    left = {name for name in state if not name.endswith(f".{_COUNTER}")}
    remedy = "give the state dict of the exported network"
    wanted: dict[tuple[str, ...], Any] = flatten_dict(dict(like))
    for path, leaf in wanted.items():
        name, shape = _torch_name(path), tuple(leaf.shape)
        if path[-1] == "kernel":
            first, second = _places(path)
            ends = {first: shape[-1], second: shape[-2]}
            shape = (ends[0], ends[1], *shape[:-2])
        if name not in state:
            raise InputError(source, f"{name} is missing", f"shape {shape}", remedy)
        left.discard(name)
        array = state[name]
        if array.shape != shape:
            raise InputError(source, f"{name} is of shape {array.shape}", f"{shape}", remedy)
        if array.dtype != np.float32:
            raise InputError(source, f"{name} is {array.dtype}", "float32", "save it as float32")
        if not np.isfinite(array).all():
            raise InputError(source, f"{name} is not finite", "finite values", "train again")
        if path[-1] == "kernel":
            array = np.moveaxis(array, _places(path), (-1, -2))
        result[path] = np.array(array, order="C")
    if left:
        raise InputError(source, f"{min(left)} is of no layer", f"{len(result)} arrays", remedy)
    return unflatten_dict(result)


def safetensors_bytes(state: Mapping[str, np.ndarray]) -> bytes:
    """A state dict as the content of a ``.safetensors`` file."""
    return tensors.save(dict(state), {"format": "pt"})


def read_safetensors(content: bytes, source: Path) -> dict[str, np.ndarray]:
    """The arrays of a ``.safetensors`` file.

    Raises:
        InputError: it is something else, or cut off.
    """
    try:
        return tensors.load(content)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            source,
            f"cannot be read ({' '.join(str(error).split())})",
            "a whole safetensors file of float32 arrays",
            "save it with safetensors.torch.save_file(network.state_dict(), …)",
        ) from error


def _torch_name(path: tuple[str, ...]) -> str:
    _, *layers, leaf = path  # the first is the collection
    parts = [part for part in layers if part not in ("batch", "group")]
    return ".".join([*parts, _NAMES.get(leaf, leaf)])


def _places(path: tuple[str, ...]) -> tuple[int, int]:
    """Axes of PyTorch's weight that hold a kernel's outputs and inputs."""
    return (1, 0) if path[1].startswith(("expand_", "head_")) else (0, 1)
