"""Trained networks as one function from tiles to class probabilities, and what evaluates them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int

from penn_jax.config import Config, ModelConfig, PredictConfig
from penn_jax.data.remote import Place, Remote
from penn_jax.export import onnx, stablehlo
from penn_jax.export.folder import is_export
from penn_jax.exported import load_export
from penn_jax.model.fold import fold
from penn_jax.model.network import Network, scores_within, total_stride
from penn_jax.predict.dense import Forward, Tiling, bucket_size, flips
from penn_jax.run import ModelCard, load_model, network_channels
from penn_jax.task import tiling
from penn_jax.types import InputError

Engine = Literal["auto", "jax", "onnxruntime"]


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network and all that prediction must know of it."""

    path: Place
    config: Config
    card: ModelCard
    variables: Mapping[str, Any]
    """Empty where a program stands for them."""
    program: bytes = b""
    """Of an export to ``onnx`` or ``stablehlo``: the network with its weights."""
    kind: Literal["weights", "onnx", "stablehlo"] = "weights"


def load_models(folders: Sequence[Place]) -> list[Model]:
    """Load models whose probabilities can be averaged: runs, or exports of them.

    Raises:
        InputError: one cannot be loaded, or differs from the first in what it predicts or takes.
    """
    models = [_load(folder) for folder in folders]
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


def _load(folder: Place) -> Model:
    if not is_export(folder):
        return Model(folder, *load_model(folder))
    if isinstance(folder, Remote):
        raise InputError(
            folder, "is an export in object storage", "a run, or an export on a disk", "copy it"
        )
    return Model(folder, *load_export(folder))


def ensemble(
    models: Sequence[Model], settings: PredictConfig, engine: Engine = "auto"
) -> tuple[Forward, Tiling]:
    """The mean of the models' probabilities, and how tiles must be cut for all of them.

    All see the same tiles, so that a frame is continued to a common multiple of their total
    strides. Where these differ and the frame is no such multiple, a model sees more continued image
    than alone, and the mean is that of its probabilities there.

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
    """One model as a function from tiles to class probabilities, by the engine asked for.

    Raises:
        InputError: the engine is not installed, or cannot evaluate an exported program.
    """
    config, card = model.config, model.card
    if model.kind != "weights":
        return _program_forward(model, mirror, engine)
    classes = len(card["labels"])
    if engine_of(model, engine) == "onnxruntime":
        return onnx.onnx_forward(
            config.model,
            classes,
            network_channels(card, config),
            card["dimensions"],
            model.variables,
            mirror,
        )
    return probability_forward(config, classes, model.variables, mirror)


def engine_of(model: Model, engine: Engine = "auto") -> Literal["jax", "onnxruntime"]:
    """What ``auto`` stands for: ONNX Runtime on a CPU where it is installed, and jax elsewhere."""
    if engine != "auto":
        return engine
    if model.kind != "weights":
        return "onnxruntime" if model.kind == "onnx" else "jax"
    # ONNX Runtime computes in float32: labels of a bfloat16 network would not be jax's.
    fits = jax.default_backend() == "cpu" and model.config.model.precision == "float32"
    return "onnxruntime" if fits and onnx.installed() else "jax"


def _program_forward(model: Model, mirror: bool, engine: Engine) -> Forward:
    """An exported program in the one engine that it was made for."""
    own = engine_of(model)
    if engine not in ("auto", own):
        raise InputError(
            f"--engine {engine}", f"{model.path} is an export to {model.kind}", own, "leave it out"
        )
    forward = onnx.graph_forward if model.kind == "onnx" else stablehlo.stablehlo_forward
    return forward(model.program, model.path, model.card["dimensions"], mirror)


def probability_forward(
    config: Config, classes: int, variables: Mapping[str, Any], mirror: bool
) -> Forward:
    """The network as a compiled function from tiles to class probabilities.

    Args:
        config: of the run.
        classes: K.
        variables: of the network; batch normalisation is folded into them.
        mirror: average the probabilities over the mirrorings along every set of axes.
    """
    folded, model = fold(variables, config.model)
    evaluate = bucketed(model, classes, mirror)
    on_device = jax.device_put(folded)
    return lambda tiles: evaluate(on_device, tiles)


def bucketed(
    model: ModelConfig, classes: int, mirror: bool = False
) -> Callable[[Any, Float32[np.ndarray, "B *tile C"]], Float32[np.ndarray, "B *tile K"]]:
    """A function from variables and tiles to class probabilities that compiles few programs.

    Tiles of whatever size are evaluated in arrays of few sizes, with the same results.

    Args:
        model: the network.
        classes: K.
        mirror: as in :func:`probability_forward`.
    """
    forward, stride = compiled(model, classes, mirror), total_stride(model)

    def evaluate(
        variables: Any, tiles: Float32[np.ndarray, "B *tile C"]
    ) -> Float32[np.ndarray, "B *tile K"]:
        size = tiles.shape[1:-1]
        bucket = tuple(bucket_size(part, stride) for part in size)
        # The statistics of groups are those of a whole array: it must be the tile's own size.
        if bucket == size or model.norm == "group":
            return np.asarray(forward(variables, tiles, None))
        room = np.zeros((len(tiles), *bucket, tiles.shape[-1]), np.float32)
        part = (slice(None), *(slice(0, n) for n in size))
        room[part] = tiles
        return np.asarray(forward(variables, room, np.array(size, np.int32)))[part]

    return evaluate


def compiled(model: ModelConfig, classes: int, mirror: bool) -> Any:
    """The jitted function from variables, tiles and the tiles' end to class probabilities.

    Its third argument is None where the tiles fill the array, else where they stop, (axes,).
    """
    network = Network(model, classes)

    @jax.jit
    def forward(
        variables: Any,
        tiles: Float32[jax.Array, "B *size C"],
        end: Int[jax.Array, " axes"] | None,
    ) -> Float32[jax.Array, "B *size K"]:
        def probabilities(seen: jax.Array, low: jax.Array) -> jax.Array:
            if end is None:
                logits = network.apply(variables, seen)[0]
            else:
                logits = scores_within(network, variables, seen, low, low + end)
            return jax.nn.softmax(logits, axis=-1)

        size = jnp.array(tiles.shape[1:-1])
        if not mirror:
            return probabilities(tiles, jnp.zeros_like(size))

        def add(total: jax.Array, choice: Bool[jax.Array, " axes"]) -> tuple[jax.Array, None]:
            # What began at 0 and stopped at ``end`` stops, mirrored, at the array's end.
            low = jnp.where(choice, size - (size if end is None else end), 0)
            return total + _mirrored(probabilities(_mirrored(tiles, choice), low), choice), None

        # A loop of the program: unrolled, XLA would hold the maps of all mirrorings at once.
        choices = jnp.asarray(flips(tiles.ndim - 2))
        total = jnp.zeros((*tiles.shape[:-1], classes), jnp.float32)
        return jax.lax.scan(add, total, choices)[0] / len(choices)

    return forward


def _mirrored(x: jax.Array, choice: Bool[jax.Array, " axes"]) -> jax.Array:
    """The array flipped along the chosen ones of its spatial axes."""
    for axis in range(1, x.ndim - 1):
        x = jnp.where(choice[axis - 1], jnp.flip(x, axis), x)
    return x
