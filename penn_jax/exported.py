"""Exports read back: as models for ``penn predict``, and as runs by ``penn import``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from penn_jax.config import Config, write_json
from penn_jax.export.folder import (
    CONFIG,
    FORMAT,
    is_export,
    read_config,
    read_weights,
    whole_folder,
)
from penn_jax.export.weights import jax_variables, read_safetensors
from penn_jax.optim.checkpoint import Checkpoints
from penn_jax.progress import warn
from penn_jax.run import ModelCard, check_card, expected_variables, opened
from penn_jax.settings import parse_section
from penn_jax.types import InputError

IMPORTED = "imported.json"
"""Of a run that ``penn import`` made: which file its weights are from."""

_PYTORCH = (".pt", ".pth")


def load_export(
    folder: Path,
) -> tuple[Config, ModelCard, dict[str, Any], bytes, Literal["weights", "onnx", "stablehlo"]]:
    """An export as a model: config, card, and either variables or a program of the kind named.

    Raises:
        InputError: a file is missing, or not as it was written.
    """
    content, config, card = _described(folder)
    path, weights = read_weights(folder, content)
    if (kind := content[FORMAT]) in ("onnx", "stablehlo"):
        return config, card, {}, weights, kind
    return config, card, _variables(weights, path, config, card), b"", "weights"


def import_torch(folder: Path, out: Path, weights: Path | None = None) -> None:
    """Make a run of an export to PyTorch, also with weights that were trained further there.

    What ``penn export`` wrote comes back bit for bit. The run predicts, exports and starts others
    with ``--init``; it has no optimiser to go on with.

    Args:
        folder: of an export to ``torch`` or ``monai``.
        out: new run directory; written whole or not at all.
        weights: state dict to take in place of the folder's own: safetensors, or a ``.pt`` file,
            of which nothing but tensors is read.

    Raises:
        InputError: the folder or the weights cannot be used; an array that is missing, of another
            shape or type, or of no layer is named. Or ``out`` holds something already.
    """
    if not is_export(folder):
        raise InputError(
            folder, "is no export", "a folder of penn export --to torch", "check the path"
        )
    content, config, card = _described(folder)
    if content[FORMAT] not in ("torch", "monai"):
        raise InputError(
            folder, f"is an export to {content[FORMAT]}", "to torch or monai", "export to torch"
        )
    path, read = read_weights(folder, content) if weights is None else (weights, _bytes(weights))
    variables = _variables(read, path, config, card)
    source = {"folder": str(folder), "weights": str(path)}
    with whole_folder(out) as run, opened(run, config, card, resume=False):
        write_json(run / IMPORTED, {**source, "sha256": hashlib.sha256(read).hexdigest()})
        account = {"seconds": 0.0, "waited": 0.0, "places": "", "scores": {}}
        state = {"imported": np.ones((), np.int32)}
        Checkpoints(run / "checkpoints", warn).save(0, variables, state, account, None)


def _described(folder: Path) -> tuple[dict[str, Any], Config, ModelCard]:
    content = read_config(folder)
    source = folder / CONFIG
    config = parse_section(Config, content["run"]["config"], source)
    return content, config, check_card(content["run"]["card"], source)


def _variables(content: bytes, path: Path, config: Config, card: ModelCard) -> dict[str, Any]:
    state: Mapping[str, np.ndarray]
    if path.suffix in _PYTORCH:
        state = pytorch().read_checkpoint(content, path)
    else:
        state = read_safetensors(content, path)
    return jax_variables(state, expected_variables(config, card), path)


def pytorch() -> Any:
    """The module of ``export`` that needs PyTorch.

    Raises:
        InputError: PyTorch is not installed.
    """
    try:
        from penn_jax.export import torch
    except ImportError as error:
        raise InputError(
            "penn", "torch is not installed", "PyTorch", "pip install 'penn-jax[torch]'"
        ) from error
    return torch


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
        raise InputError(path, wrong, "a state dict", "check the path") from error
