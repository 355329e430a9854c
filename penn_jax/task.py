"""What training, pre-training and prediction must agree on: data, network, tiles, random draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from penn_jax.config import Config
from penn_jax.data.store import Store
from penn_jax.model.network import halo, total_stride
from penn_jax.predict.dense import Tiling
from penn_jax.types import InputError

DROPOUT_DRAW = 1000
"""Told apart from the draws that the photometric augmentation makes of a sample's key."""


def check_fit(config: Config, store: Store) -> None:
    """Check that config and data belong together.

    Raises:
        InputError: the patch's axes, its size or the batch do not fit.
    """
    dimensions = store.manifest["dimensions"]
    size, stride = config.patches.size, total_stride(config.model)
    if len(size) != dimensions:
        raise InputError(
            "--patches.size",
            f"{len(size)} axes",
            f"{dimensions}, as the store {store.path} has",
            "give one size an axis, or prepare with --dimensions",
        )
    if any(part % stride for part in size):
        raise InputError(
            "--patches.size", f"{size}", f"multiples of {stride}", "round up, or use fewer stages"
        )
    if dimensions == 3 and config.patches.neighbours:
        raise InputError("--patches.neighbours", "set for a 3-D store", "0", "leave it out")
    if not config.train.max_steps and not config.train.max_seconds:
        raise InputError(
            "--train.max-steps", "0 without --train.max-seconds", "a budget", "set one"
        )
    if config.model.residual and config.model.blocks < 2:
        raise InputError(
            "--model.residual", "set with one block", "two blocks", "raise --model.blocks"
        )
    if jax.process_count() > 1:
        raise InputError(
            "penn", f"{jax.process_count()} processes", "one", "start a single process"
        )
    if config.train.batch_size % jax.device_count():
        raise InputError(
            "--train.batch-size",
            f"{config.train.batch_size}",
            f"a multiple of the {jax.device_count()} devices",
            "change it",
        )


def model_card(store: Store, fold: int) -> dict[str, Any]:
    """What prediction must know of the data: it goes into ``environment.json``."""
    manifest = store.manifest
    return {
        "channels": manifest["channels"],
        "labels": manifest["labels"],
        "label_values": manifest["label_values"],
        "dimensions": manifest["dimensions"],
        "spacing": manifest["spacing"],
        "data_hash": manifest["data_hash"],
        "fold": fold,
    }


def network_channels(card: Mapping[str, Any], config: Config) -> int:
    """Input channels of the network: the scan's, for the slice and each of its neighbours."""
    return len(card["channels"]) * (2 * config.patches.neighbours + 1)


def tiling(config: Config) -> Tiling:
    """How whole frames are predicted with this network."""
    return Tiling(
        stride=total_stride(config.model),
        halo=halo(config.model),
        neighbours=config.patches.neighbours,
        batch_size=config.predict.batch_size,
    )
