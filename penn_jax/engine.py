"""Trained networks as one function from tiles to class probabilities, and what evaluates them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from penn_jax.config import Config, PredictConfig
from penn_jax.model.fold import fold
from penn_jax.model.network import Network, scores_within, total_stride
from penn_jax.predict.dense import Forward, Tiling, bucket_size
from penn_jax.run import ModelCard, load_model, network_channels
from penn_jax.task import tiling
from penn_jax.types import InputError

Engine = Literal["auto", "jax", "onnxruntime"]


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network and all that prediction must know of it."""

    path: Path
    config: Config
    card: ModelCard
    variables: Mapping[str, Any]


def load_models(folders: Sequence[Path]) -> list[Model]:
    """Load models whose probabilities can be averaged.

    Raises:
        InputError: one cannot be loaded, or differs from the first in what it predicts or takes.
    """
    models = [Model(folder, *load_model(folder)) for folder in folders]
    for model in models:
        if model.card["task"] != "segmentation":
            raise InputError(
                model.path, "was pre-trained only", "a run of penn train", "train with --init"
            )
        for name in ("labels", "label_values", "channels", "dimensions", "spacing"):
            here, there = model.card[name], models[0].card[name]
            if here != there:
                raise InputError(
                    model.path, f"its {name} are {here}", f"{there} as in {models[0].path}",
                    "average models of the same data only",
                )  # fmt: skip
    return models


def ensemble(
    models: Sequence[Model], settings: PredictConfig, engine: Engine = "auto"
) -> tuple[Forward, Tiling]:
    """The mean of the models' probabilities, and how tiles must be cut for all of them.

    Args:
        models: of the same labels and channels; their networks may differ.
        settings: mirroring, batch size and memory budget for all.
        engine: what evaluates the networks.
    """
    plans = [tiling(model.config, model.card) for model in models]
    forwards = [model_forward(model, settings.mirror, engine) for model in models]
    stride = reduce(math.lcm, (plan.stride for plan in plans))
    most = max(plan.neighbours for plan in plans)
    plan = Tiling(
        stride=stride,
        halo=-(-max(plan.halo for plan in plans) // stride) * stride,
        neighbours=most,
        batch_size=settings.batch_size,
        voxel_bytes=max(plan.voxel_bytes for plan in plans),
        memory_budget=settings.memory_budget,
    )
    if len(models) == 1:
        return forwards[0], plan
    channels = len(models[0].card["channels"])

    def forward(
        tiles: Float32[np.ndarray, "B *tile C"],
    ) -> Float32[np.ndarray, "B *tile K"]:
        total: Any = 0.0
        for own, one in zip(plans, forwards, strict=True):
            # A model that sees fewer neighbours takes the slices in the middle.
            spare = (most - own.neighbours) * channels
            total = total + one(tiles[..., spare : tiles.shape[-1] - spare])
        return total / np.float32(len(forwards))

    return forward, plan


def model_forward(model: Model, mirror: bool, engine: Engine = "auto") -> Forward:
    """One model as a function from tiles to class probabilities, by the engine asked for."""
    from penn_jax.export import onnx

    config, card = model.config, model.card
    if engine == "auto":
        on_cpu = jax.default_backend() == "cpu"
        engine = "onnxruntime" if on_cpu and onnx.installed() else "jax"
    classes = len(card["labels"])
    if engine == "onnxruntime":
        return onnx.onnx_forward(
            config.model,
            classes,
            network_channels(card, config),
            card["dimensions"],
            model.variables,
            mirror,
        )
    return probability_forward(config, classes, model.variables, mirror)


def probability_forward(
    config: Config, classes: int, variables: Mapping[str, Any], mirror: bool
) -> Forward:
    """The network as a compiled function from tiles to class probabilities.

    Tiles of whatever size are evaluated in arrays of few sizes, with the same results, so that few
    programs are compiled.

    Args:
        config: of the run.
        classes: K.
        variables: of the network; batch normalisation is folded into them.
        mirror: average the probabilities over the mirrorings along every set of axes.
    """
    folded, model = fold(variables, config.model)
    network, stride = Network(model, classes), total_stride(model)
    on_device = jax.device_put(folded)

    @jax.jit
    def forward(variables: Any, tiles: jax.Array, end: jax.Array | None) -> jax.Array:
        axes = range(1, tiles.ndim - 1)
        flips = [
            tuple(axis for axis, flipped in zip(axes, choice, strict=True) if flipped)
            for choice in product((False, True), repeat=len(axes))
        ]
        total = jnp.zeros((*tiles.shape[:-1], classes), jnp.float32)
        used = flips if mirror else flips[:1]
        for flip in used:
            seen = jnp.flip(tiles, flip)
            if end is None:
                logits = network.apply(variables, seen)[0]
            else:
                # What began at 0 and stopped at ``end`` stops, mirrored, at the array's end.
                mirrored = jnp.array([axis in flip for axis in axes])
                low = jnp.where(mirrored, jnp.array(tiles.shape[1:-1]) - end, 0)
                logits = scores_within(network, variables, seen, low, low + end)
            total = total + jnp.flip(jax.nn.softmax(logits, axis=-1), flip)
        return total / len(used)

    def bucketed(
        tiles: Float32[np.ndarray, "B *tile C"],
    ) -> Float32[np.ndarray, "B *tile K"]:
        size = tiles.shape[1:-1]
        bucket = tuple(bucket_size(part, stride) for part in size)
        # The statistics of groups are those of a whole array: it must be the tile's own size.
        if bucket == size or model.norm == "group":
            return np.asarray(forward(on_device, tiles, None))
        room = np.zeros((len(tiles), *bucket, tiles.shape[-1]), np.float32)
        part = (slice(None), *(slice(0, n) for n in size))
        room[part] = tiles
        return np.asarray(forward(on_device, room, np.array(size, np.int32)))[part]

    return bucketed
