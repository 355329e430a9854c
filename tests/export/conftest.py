"""Small networks of every mode with what JAX makes of an image, computed once for all formats."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from penn_jax.config import ModelConfig
from penn_jax.model.network import Network, total_stride


class Case(NamedTuple):
    config: ModelConfig
    classes: int
    channels: int
    dimensions: int
    variables: dict[str, Any]
    image: np.ndarray
    """(B, *spatial, C)."""
    logits: np.ndarray
    """(B, *spatial, K), of JAX."""


_MODES = {
    "concat-batch-2d": (2, {"channels": (16, 24, 40)}),
    "concat-group-2d": (2, {"norm": "group", "stem": 1}),
    "concat-none-2d": (2, {"norm": "none", "stem": 4}),
    "add-batch-residual-2d": (2, {"skip": "add", "residual": True, "stem": 4}),
    "add-group-residual-2d": (2, {"skip": "add", "norm": "group", "residual": True, "blocks": 3}),
    "none-batch-2d": (2, {"skip": "none", "stem": 1, "blocks": 1}),
    "none-none-residual-2d": (2, {"skip": "none", "norm": "none", "residual": True}),
    "deep-supervision-2d": (2, {"deep_supervision": True, "dropout": 0.3}),
    "one-stage-2d": (2, {"channels": (12,)}),
    "concat-batch-3d": (3, {"blocks": 1}),
    "add-group-residual-3d": (3, {"skip": "add", "norm": "group", "residual": True, "stem": 1}),
    "none-none-3d": (3, {"skip": "none", "norm": "none", "blocks": 1}),
}


def draw(network: Network, channels: int, dimensions: int, seed: int = 1) -> dict[str, Any]:
    """Variables as after training: no scale is 1, no bias and no mean 0; nothing is compiled."""
    size = (total_stride(network.config),) * dimensions
    image = np.zeros((1, *size, channels), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    rng = np.random.default_rng(seed)

    def drawn(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.normal(size=leaf.shape).astype(np.float32)
        name = path[-1].key
        if name == "kernel":
            return values / np.float32(np.sqrt(leaf.size / leaf.shape[-1]))
        return 0.3 * values if name in ("bias", "mean") else np.exp(0.3 * values)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


@pytest.fixture(scope="session")
def drawn() -> Any:
    """The function above, for the tests of this folder."""
    return draw


@pytest.fixture(scope="session", params=_MODES)
def case(request: pytest.FixtureRequest) -> Case:
    dimensions, mode = _MODES[request.param]
    config = ModelConfig(**{"channels": (16, 24), **mode})
    classes, channels = 3, 2
    network = Network(config, classes)
    spatial = [total_stride(config) * part for part in (2, 3, 1)[:dimensions]]
    shape = (2, *spatial, channels)
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    variables = draw(network, channels, dimensions)
    logits = np.asarray(jax.jit(network.apply)(variables, image)[0])
    return Case(config, classes, channels, dimensions, variables, image, logits)
