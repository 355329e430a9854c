"""What training, pre-training and prediction must agree on: data, network, tiles, random draws."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

import jax

from penn_jax.config import Config
from penn_jax.data.leaks import listed, pretraining_pool
from penn_jax.data.remote import Place
from penn_jax.data.store import Store
from penn_jax.data.usual import usual_scans
from penn_jax.model.network import evaluation_bytes, halo, total_stride
from penn_jax.predict.dense import WHOLE_FRAME, Tiling
from penn_jax.run import ModelCard, network_channels, output_channels
from penn_jax.types import InputError

DROPOUT_DRAW = 1000
"""Told apart from the draws that the photometric augmentation makes of a sample's key."""


def check_fit(config: Config, store: Store) -> None:
    """Check that config and data belong together.

    Raises:
        InputError: the patch's axes, its size or the batch do not fit.
    """
    dimensions = store.manifest["dimensions"]
    if len(config.patches.size) != dimensions:
        raise InputError(
            "--patches.size",
            f"{len(config.patches.size)} axes",
            f"{dimensions}, as the store {store.path} has",
            "give one size an axis, or prepare with --dimensions",
        )
    check_config(config)
    course, devices = config.train, jax.device_count()
    if course.batch_size % (devices * course.accumulate):
        parts = "" if course.accumulate == 1 else f" × {course.accumulate} of --train.accumulate"
        raise InputError(
            "--train.batch-size",
            f"{course.batch_size}",
            f"a multiple of the {devices} devices{parts}",
            "change it",
        )


def check_config(config: Config) -> None:
    """Check that the parts of a config belong together.

    Raises:
        InputError: two of its values do not.
    """
    size, stride = config.patches.size, total_stride(config.model)
    if len(size) not in (2, 3):
        raise InputError("--patches.size", f"{len(size)} axes", "2 or 3", "give one size an axis")
    if any(part % stride for part in size):
        raise InputError(
            "--patches.size", f"{size}", f"multiples of {stride}", "round up, or use fewer stages"
        )
    if len(size) == 3 and config.patches.neighbours:
        raise InputError("--patches.neighbours", "set for a 3-D store", "0", "leave it out")
    if not config.train.max_steps and not config.train.max_seconds:
        raise InputError(
            "--train.max-steps", "0 without --train.max-seconds", "a budget", "set one"
        )
    if config.model.residual and config.model.blocks < 2:
        raise InputError(
            "--model.residual", "set with one block", "two blocks", "raise --model.blocks"
        )


def pretraining_cases(store: Store, fold: int) -> list[str]:
    """The split's training cases and the unlabelled ones, of people no result is measured on.

    Raises:
        InputError: there are none.
    """
    cases, left_out = pretraining_pool(store.manifest["cases"], store.split(fold))
    if not cases:
        wrong = "no case to pre-train on"
        if left_out:
            wrong += f": {listed(left_out)} of the subjects of validation or test cases"
        raise InputError(store.path, wrong, "at least one", "add scans")
    return cases


def model_card(
    store: Store, fold: int, task: Literal["segmentation", "restoration"], init: Place | None = None
) -> ModelCard:
    """What prediction must know of a store."""
    manifest = store.manifest
    training = [manifest["cases"][name] for name in store.split(fold)["train"]]
    card = ModelCard(
        channels=manifest["channels"],
        labels=manifest["labels"],
        label_values=manifest["label_values"],
        dimensions=manifest["dimensions"],
        spacing=manifest["spacing"],
        data_hash=manifest["data_hash"],
        split_hash=hashlib.sha256(json.dumps(store.split(fold)).encode()).hexdigest()[:16],
        fold=fold,
        task=task,
    )
    if training:
        card["usual"] = usual_scans(training)
    if init:
        card["init"] = str(init)
    return card


def tiling(config: Config, card: ModelCard) -> Tiling:
    """How whole frames are predicted with this network."""
    local = config.model.norm != "group"  # the statistics of groups are those of a whole frame
    return Tiling(
        stride=total_stride(config.model),
        halo=halo(config.model) if local else WHOLE_FRAME,
        neighbours=config.patches.neighbours,
        batch_size=config.predict.batch_size,
        voxel_bytes=evaluation_bytes(
            config.model,
            card["dimensions"],
            network_channels(card, config),
            output_channels(card, config),
        ),
        memory_budget=config.predict.memory_budget,
    )
