"""The network's shapes, its parameter names, and its halo against the support of its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from penn_jax.config import ModelConfig
from penn_jax.model.network import Network, halo, initialise, parameter_count, total_stride

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
    "config",
    [
        ModelConfig(stem=1, channels=(4, 4), blocks=2),
        ModelConfig(stem=2, channels=(4, 4, 4), blocks=1),
        ModelConfig(stem=2, channels=(4, 4, 4), blocks=2, skip="none"),
        ModelConfig(stem=4, channels=(4, 4), blocks=2, residual=True),
    ],
)
def test_halo_covers_the_support_of_the_gradient(config):
    network = Network(config, classes=2)
    variables = initialise(network, jax.random.key(0), 1, 2)
    reach = halo(config)
    size = 2 * reach + 3 * total_stride(config)
    size = -(-size // total_stride(config)) * total_stride(config)
    x = jax.random.normal(jax.random.key(1), (1, size, size, 1))
    support = np.zeros((size, size), bool)
    first = size // 2 // total_stride(config) * total_stride(config)
    gradient_of = jax.jit(jax.grad(lambda x, m: network.apply(variables, x)[0][0, m, m, 0]))
    for offset in range(total_stride(config)):  # every position within a coarse voxel
        middle = first + offset
        gradient = np.array(gradient_of(x, middle))
        rows = np.flatnonzero(np.abs(gradient[0, :, :, 0]).sum(axis=1))
        assert middle - rows.min() <= reach
        assert rows.max() - middle <= reach
        support |= np.abs(gradient[0, :, :, 0]) > 0
    # Not wastefully wide either: the true reach is more than half of the halo.
    assert np.flatnonzero(support.any(axis=1)).size > reach / 2
