"""What needs PyTorch itself: the network with its weights, and files that only PyTorch reads."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penn_jax.config import ModelConfig
from penn_jax.export.penn_torch import Network
from penn_jax.export.weights import network_options, torch_state
from penn_jax.types import InputError


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
    """
    network = Network(**network_options(config, classes, channels, dimensions))
    network.load_state_dict(_tensors(torch_state(variables)))
    return network.eval()


def checkpoint_bytes(state: Mapping[str, np.ndarray]) -> bytes:
    """A state dict as the content of a ``.pt`` file."""
    file = io.BytesIO()
    torch.save(_tensors(state), file)
    return file.getvalue()


def read_checkpoint(content: bytes, source: Path) -> dict[str, np.ndarray]:
    """The arrays of a ``.pt`` file, read without running any code in it.

    Raises:
        InputError: it is no state dict, or holds more than tensors.
    """
    expected, remedy = "a state dict of tensors", "save it with torch.save(network.state_dict(), …)"
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises many kinds for what it cannot or will not read
        wrong = f"cannot be read ({type(error).__name__})"
        raise InputError(source, wrong, expected, remedy) from error
    if not isinstance(state, dict):
        raise InputError(source, f"holds a {type(state).__name__}", expected, remedy)
    arrays: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(source, f"{name!r} is a {type(value).__name__}", expected, remedy)
        try:
            arrays[str(name)] = value.detach().numpy()
        except (RuntimeError, TypeError) as error:  # bfloat16, sparse, quantised, …
            wrong = f"{name} is {str(value.dtype).removeprefix('torch.')}"
            raise InputError(source, wrong, "dense float32", "save it so") from error
    return arrays


def _tensors(state: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in state.items()}
