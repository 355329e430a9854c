"""The network's shapes, its parameter names, and its halo against the support of its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from penn_jax.config import ModelConfig
from penn_jax.model.network import (
    Network,
    evaluation_bytes,
    halo,
    initialise,
    parameter_count,
    scores_within,
    total_stride,
)

SMALL = {"channels": (8, 8, 16), "blocks": 1}


@pytest.mark.parametrize(
    ("skip", "norm", "stem"),
    [
        (skip, norm, (1, 2, 4)[(i + j) % 3])
        for i, skip in enumerate(["concat", "add", "none"])
        for j, norm in enumerate(["batch", "group", "none"])
    ],
)
def test_scores_have_the_input_size_in_every_mode(skip, norm, stem):
    config = ModelConfig(skip=skip, norm=norm, stem=stem, **SMALL)
    network = Network(config, classes=3)
    variables = initialise(network, jax.random.key(0), channels=2, dimensions=2)
    x = jax.random.normal(jax.random.key(1), (2, total_stride(config) * 2, total_stride(config), 2))
    (scores,) = jax.jit(network.apply)(variables, x)
    assert scores.shape == (*x.shape[:-1], 3)
    assert scores.dtype == jnp.float32
    assert np.isfinite(scores).all()
    assert ("batch_stats" in variables) == (norm == "batch")


def test_three_axes_by_the_same_code():
    config = ModelConfig(**SMALL)
    network = Network(config, classes=2)
    variables = initialise(network, jax.random.key(0), channels=1, dimensions=3)
    (scores,) = jax.jit(network.apply)(variables, jnp.ones((1, 8, 16, 8, 1)))
    assert scores.shape == (1, 8, 16, 8, 2)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters():
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))
    networks = {
        precision: Network(ModelConfig(precision=precision, **SMALL), classes=2)
        for precision in ("float32", "bfloat16")
    }
    variables = initialise(networks["bfloat16"], jax.random.key(0), 1, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact, rounded = (jax.jit(n.apply)(variables, x)[0] for n in networks.values())
    # bfloat16 has 8 bits of mantissa; through some ten layers errors stay within a few per cent.
    assert float(jnp.abs(exact - rounded).max()) < 0.05 * float(jnp.abs(exact).max())
    assert float(jnp.abs(exact - rounded).max()) > 0


def test_deep_supervision_predicts_on_every_grid_while_training_only():
    config = ModelConfig(deep_supervision=True, **SMALL)
    network = Network(config, classes=2)
    variables = initialise(network, jax.random.key(0), 1, 2)
    x = jnp.ones((1, 16, 16, 1))
    apply = jax.jit(network.apply, static_argnames=("train", "mutable"))
    scores, _ = apply(variables, x, train=True, mutable=("batch_stats",))
    assert [s.shape[1] for s in scores] == [16, 8]
    assert len(apply(variables, x)) == 1


def test_parameter_names_and_count():
    config = ModelConfig(stem=2, channels=(8, 16), blocks=1, norm="none")
    variables = initialise(Network(config, classes=2), jax.random.key(0), 1, 2)
    assert set(variables["params"]) == {
        *("reduce_0", "reduce_norm_0", "conv_0", "reduce_1", "reduce_norm_1", "conv_1"),
        *("expand_1", "expand_norm_1", "deconv_0", "head_0"),
    }
    # By hand: stem 2·2·1·8, each with 8 biases; conv 9·8·8; reduce 2·2·8·16; conv 9·16·16;
    # expand 2·2·16·8; deconv 9·16·8 (concatenated); head 2·2·8·2 + 2.
    by_hand = (32 + 8) + (576 + 8) + (512 + 16) + (2304 + 16) + (512 + 8) + (1152 + 8) + (64 + 2)
    assert parameter_count(variables) == by_hand


def test_size_off_the_stride_is_refused():
    config = ModelConfig(**SMALL)
    network = Network(config, classes=2)
    with pytest.raises(ValueError, match="multiple of 8"):
        network.init(jax.random.key(0), jnp.ones((1, 12, 16, 1)))


@pytest.mark.parametrize(
    ("config", "dimensions", "by_hand"),
    [
        # By hand, r after each stage (| between them): 2.
        (ModelConfig(stem=1, channels=(4,), blocks=2), 2, 2),
        # 2 | 2 + 4 = 6 | 8, a multiple of 2.
        (ModelConfig(stem=1, channels=(4, 4), blocks=2), 2, 8),
        # 2 | up to 4, + 4 = 8 | + 8 = 16 | + 4 | + 2 = 22, up to 24.
        (ModelConfig(stem=2, channels=(4, 4, 4), blocks=1), 2, 24),
        # 4 | + 8 = 12 | up to 16, + 16 = 32 | + 8 | + 4 = 44, up to 48.
        (ModelConfig(stem=2, channels=(4, 4, 4), blocks=2, skip="none"), 2, 48),
        (ModelConfig(stem=4, channels=(4, 4), blocks=2, residual=True), 2, 32),
        (ModelConfig(stem=1, channels=(4, 4), blocks=2, skip="add"), 3, 8),
        # 2 | up to 4, + 4 = 8 | + 2 = 10, up to 12.
        (ModelConfig(stem=2, channels=(4, 4), blocks=1, skip="none"), 3, 12),
    ],
)
def test_halo_is_the_support_of_the_gradient_in_whole_strides(config, dimensions, by_hand):
    assert halo(config) == by_hand
    stride, network = total_stride(config), Network(config, classes=2)
    variables = initialise(network, jax.random.key(0), 1, dimensions)
    before = by_hand + 2 * stride  # room on either side, so that the border hides nothing
    size = 2 * before + stride
    x = jax.random.normal(jax.random.key(1), (1, *(size,) * dimensions, 1))
    tile = (0, *(slice(before, before + stride),) * dimensions)
    # The square keeps scores of opposite sign from cancelling.
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(network.apply(variables, x)[0][tile] ** 2)))(x)
    strength = np.abs(np.array(gradient)[0, ..., 0])
    for axis in range(dimensions):
        others = tuple(a for a in range(dimensions) if a != axis)
        seen = np.flatnonzero(strength.sum(axis=others))
        for reach in (before - seen.min(), seen.max() - (before + stride - 1)):
            assert by_hand - stride < reach <= by_hand  # enough, and less than a stride too much


@pytest.mark.parametrize(
    ("config", "dimensions", "channels", "classes"),
    [
        (ModelConfig(stem=2, channels=(32, 48, 64)), 2, 1, 2),
        (ModelConfig(stem=1, channels=(16, 32), skip="none"), 2, 3, 2),
        (ModelConfig(stem=2, channels=(32, 32), skip="add", residual=True), 2, 1, 25),
        (ModelConfig(stem=2, channels=(8, 16, 32), blocks=1), 3, 1, 25),
    ],
)
def test_bytes_of_an_evaluation_are_near_what_xla_plans(config, dimensions, channels, classes):
    config = dataclasses.replace(config, norm="none")
    # Large, so that copies of the weights, which XLA plans too, count for little.
    network, size = Network(config, classes), 256 if dimensions == 2 else 64
    variables = jax.eval_shape(lambda: initialise(network, jax.random.key(0), channels, dimensions))
    x = jax.ShapeDtypeStruct((1, *(size,) * dimensions, channels), jnp.float32)
    planned = (
        jax.jit(lambda v, x: jax.nn.softmax(network.apply(v, x)[0], axis=-1))
        .lower(variables, x)
        .compile()
        .memory_analysis()
    )
    weights = 4 * sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
    voxels = size**dimensions
    # The batch before, which the host still holds, is not in XLA's plan.
    found = planned.temp_size_in_bytes + planned.output_size_in_bytes
    found += planned.argument_size_in_bytes - weights
    found = found / voxels + 4 * (channels + classes)
    stated = evaluation_bytes(config, dimensions, channels, classes)
    assert 0.8 * found < stated < 1.25 * found


@pytest.mark.parametrize(
    ("config", "low", "high"),
    [
        (ModelConfig(stem=2, channels=(4, 5, 6), blocks=2, norm="none"), (8, 0), (32, 24)),
        (ModelConfig(stem=1, channels=(4, 5), blocks=1, skip="add", residual=True), (2, 4), (8, 6)),
        (ModelConfig(stem=1, channels=(3, 4), blocks=1, skip="none"), (0, 2, 4), (6, 6, 8)),
    ],
)
def test_scores_within_a_part_are_those_of_the_part_alone(config, low, high):
    network = Network(config, classes=2)
    variables = initialise(network, jax.random.key(0), 1, len(low))
    # As after training: biases, so that the features outside would not be zero by themselves.
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    size = (40, 32) if len(low) == 2 else (8, 8, 8)
    x = jax.random.normal(jax.random.key(1), (2, *size, 1))
    part = (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
    (expected,) = jax.jit(network.apply)(variables, x[part])
    within = jax.jit(lambda v, x, low, high: scores_within(network, v, x, low, high))
    found = within(variables, x, jnp.array(low), jnp.array(high))
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(found[part], expected, atol=1e-5 * scale)
    whole = jax.jit(network.apply)(variables, x)[0][part]
    assert np.abs(whole - expected).max() > 1e-3 * scale  # the end of an image matters
