"""The network as a StableHLO program: for whatever runs XLA, without Python code or flax.

Channels last, as in JAX; batch and spatial sizes are free, the latter multiples of the network's
total stride. One program for CPU, CUDA and TPU, with batch normalisation folded into its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from penn_jax.config import ModelConfig
from penn_jax.model.fold import fold
from penn_jax.model.network import Network, total_stride
from penn_jax.predict.dense import Forward, over_mirrorings
from penn_jax.types import InputError

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(
    variables: Mapping[str, Any],
    config: ModelConfig,
    classes: int,
    channels: int,
    dimensions: int,
) -> bytes:
    """The network from images (B, *spatial, C) to logits (B, *spatial, K), as ``jax.export`` does.

    Products keep float32's precision on every platform, so that masks do not depend on it.

    Args:
        variables: of the JAX network: ``params`` and, with batch norm, ``batch_stats``.
        config: of the network.
        classes: K.
        channels: of the network's input, neighbouring slices included.
        dimensions: spatial axes.
    """
    folded, config = fold(variables, config)
    folded = jax.tree.map(jnp.asarray, folded)
    network, stride = Network(config, classes), total_stride(config)
    spatial = ", ".join(f"{stride}*size_{axis}" for axis in range(dimensions))
    shape = jax.export.symbolic_shape(f"batch, {spatial}, {channels}")

    def logits(image: Float32[jax.Array, "B *spatial C"]) -> Float32[jax.Array, "B *spatial K"]:
        return network.apply(folded, image)[0]

    with jax.default_matmul_precision("highest"):
        exported = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(
            jax.ShapeDtypeStruct(shape, np.float32)
        )
    return bytes(exported.serialize())


def stablehlo_forward(program: bytes, source: object, dimensions: int, mirror: bool) -> Forward:
    """An exported program as a function from tiles to class probabilities.

    Args:
        program: from :func:`to_stablehlo`.
        source: of the program, for the messages.
        dimensions: spatial axes of a tile.
        mirror: average the probabilities over the mirrorings along every set of axes.

    Raises:
        InputError: jax cannot read the program, or it is for other devices than this one.
    """
    try:
        exported = jax.export.deserialize(bytearray(program))
    except Exception as error:  # flatbuffers and jax raise many kinds
        raise InputError(
            source,
            f"cannot be read ({type(error).__name__})",
            f"a program of penn export that jax {jax.__version__} reads",
            "export it again with this version",
        ) from error
    device = jax.default_backend().replace("gpu", "cuda")
    if device not in exported.platforms:
        platforms = ", ".join(exported.platforms)
        raise InputError(source, f"is for {platforms}", device, "set JAX_PLATFORMS=cpu")
    probabilities = jax.jit(lambda tiles: jax.nn.softmax(exported.call(tiles), axis=-1))
    return over_mirrorings(lambda tiles: np.asarray(probabilities(tiles)), dimensions, mirror)
