"""Folding changes the names of the parameters and nothing else."""

import jax
import numpy as np
import pytest

from penn_jax.config import ModelConfig
from penn_jax.model.fold import fold
from penn_jax.model.network import Network, initialise, total_stride

# Every stem, skip mode, number of stages and axes, with and without residuals and deep supervision.
CASES = [
    (ModelConfig(stem=1, channels=(5,), blocks=2, skip="none"), 2),
    (ModelConfig(stem=2, channels=(6, 4), blocks=1, skip="concat"), 3),
    (ModelConfig(stem=4, channels=(4, 8), blocks=2, skip="add", residual=True), 2),
    (ModelConfig(stem=1, channels=(4, 5, 6), blocks=3, skip="concat", residual=True), 2),
    (ModelConfig(stem=2, channels=(3, 4, 5), blocks=1, skip="add", deep_supervision=True), 2),
    (ModelConfig(stem=1, channels=(2, 3), blocks=2, skip="none", residual=True), 3),
]


def trained(config: ModelConfig, dimensions: int, seed: int, classes: int = 3):
    """Variables as after training: nothing is left at its initial 0 or 1."""
    variables = initialise(Network(config, classes), jax.random.key(seed), 2, dimensions)
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        if "kernel" in jax.tree_util.keystr(path):
            return np.asarray(leaf)
        # Positive, so that it can be a variance; scales and biases may have any sign.
        value = rng.uniform(0.2, 2.0, leaf.shape).astype(np.float32)
        return value if "var" in jax.tree_util.keystr(path) else value - 1

    return jax.tree_util.tree_map_with_path(drawn, variables)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_folded_network_gives_the_same_scores(number):
    config, dimensions = CASES[number]
    variables = trained(config, dimensions, number)
    folded, without = fold(variables, config)
    assert without.norm == "none"
    size = (total_stride(config) * 2, total_stride(config) * 3, total_stride(config) * 2)
    x = np.random.default_rng(number).normal(size=(2, *size[:dimensions], 2)).astype(np.float32)
    (expected,) = jax.jit(Network(config, 3).apply)(variables, x)
    (found,) = jax.jit(Network(without, 3).apply)(folded, x)
    # float32 rounds at 6e-8 of the largest value, some ten layers deep.
    np.testing.assert_allclose(found, expected, atol=2e-6 * float(np.abs(expected).max()))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_names_and_shapes_are_those_of_a_network_without_normalisation(number):
    config, dimensions = CASES[number]
    folded, without = fold(trained(config, dimensions, number), config)
    fresh = initialise(Network(without, 3), jax.random.key(0), 2, dimensions)
    assert jax.tree.map(np.shape, folded) == jax.tree.map(np.shape, fresh)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {np.dtype("float32")}


def test_the_bias_of_a_known_layer_is_the_one_by_hand():
    config = ModelConfig(stem=1, channels=(1,), blocks=1)
    variables = trained(config, 2, 0)
    variables["params"]["conv_0"]["norm_0"]["batch"] = {
        "scale": np.float32([3.0]),
        "bias": np.float32([0.5]),
    }
    variables["batch_stats"]["conv_0"]["norm_0"]["batch"] = {
        "mean": np.float32([2.0]),
        "var": np.float32([4.0 - 1e-5]),
    }
    folded, _ = fold(variables, config)
    # a = 3 / √4 = 1.5; bias 0.5 - 1.5 · 2 = -2.5.
    np.testing.assert_allclose(folded["params"]["conv_0"]["norm_0"]["bias"], [-2.5], rtol=1e-6)
    kernel = variables["params"]["conv_0"]["conv_0"]["kernel"]
    np.testing.assert_allclose(folded["params"]["conv_0"]["conv_0"]["kernel"], 1.5 * kernel, 1e-6)


@pytest.mark.parametrize("norm", ["group", "none"])
def test_other_networks_are_left_as_they_are(norm):
    config = ModelConfig(norm=norm, channels=(4, 4), blocks=1)
    variables = initialise(Network(config, 2), jax.random.key(0), 1, 2)
    folded, same = fold(variables, config)
    assert same == config
    assert folded == dict(variables)
