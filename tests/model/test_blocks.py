"""The fast layers against PyTorch's, and rearrangements against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penn_jax.model.blocks import (
    ChannelDropout,
    Expand,
    Normalise,
    Reduce,
    depth_to_space,
    space_to_depth,
)

shapes = st.tuples(
    st.sampled_from([2, 3]), st.integers(1, 3), st.sampled_from([2, 4]), st.integers(1, 3)
)


@settings(max_examples=12)  # each new shape compiles
@given(shapes, st.integers(0, 2**31 - 1))
def test_depth_to_space_is_the_inverse_of_space_to_depth(shape, seed):
    axes, coarse, factor, channels = shape
    x = np.random.default_rng(seed).normal(size=(2, *(coarse * factor,) * axes, channels))
    x = jnp.asarray(x, jnp.float32)
    deep = space_to_depth(x, factor)
    assert deep.shape == (2, *(coarse,) * axes, factor**axes * channels)
    np.testing.assert_array_equal(depth_to_space(deep, factor), x)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("factor", [2, 4])
def test_reduce_is_torch_convolution(axes, factor):
    generator = np.random.default_rng(1)
    x = jnp.asarray(generator.normal(size=(2, *(8,) * axes, 3)), jnp.float32)
    layer = Reduce(5, factor, use_bias=True)
    variables = layer.init(jax.random.key(0), x)
    variables["params"]["bias"] = jnp.arange(5.0)
    twin = (torch.nn.Conv2d, torch.nn.Conv3d)[axes - 2](3, 5, factor, stride=factor)
    _compare(layer, variables, twin, x, order=(axes + 1, axes, *range(axes)))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_expand_is_torch_transposed_convolution(axes, factor):
    generator = np.random.default_rng(2)
    x = jnp.asarray(generator.normal(size=(2, *(4,) * axes, 6)), jnp.float32)
    layer = Expand(5, factor, use_bias=True)
    variables = layer.init(jax.random.key(0), x)
    variables["params"]["bias"] = jnp.arange(5.0)
    kind = (torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)[axes - 2]
    twin = kind(6, 5, factor, stride=factor)
    _compare(layer, variables, twin, x, order=(axes, axes + 1, *range(axes)))


def _compare(layer, variables, twin, x, order):
    """Outputs and the gradients of their squared sum, jitted and eager."""
    with torch.no_grad():
        kernel = np.array(variables["params"]["kernel"])
        twin.weight.copy_(torch.from_numpy(kernel.transpose(order).copy()))
        twin.bias.copy_(torch.from_numpy(np.array(variables["params"]["bias"])))
    there = torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy()).requires_grad_()
    expected = twin(there)
    (expected**2).sum().backward()

    def objective(variables, x):
        y = layer.apply(variables, x)
        return jnp.sum(y**2), y

    (_, eager), _ = jax.value_and_grad(objective, has_aux=True)(variables, x)
    (_, y), (gradient, of_x) = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(
        variables, x
    )
    channels_last = np.moveaxis(expected.detach().numpy(), 1, -1)
    # 3·4³ products of order one: float32 rounding stays below 1e-5 of the largest sum.
    np.testing.assert_allclose(y, channels_last, atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(eager, channels_last, atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(
        np.array(gradient["params"]["kernel"]).transpose(order),
        twin.weight.grad.numpy(),
        rtol=1e-4,
        atol=1e-3,
    )
    np.testing.assert_allclose(of_x, np.moveaxis(there.grad.numpy(), 1, -1), rtol=1e-4, atol=1e-3)


def test_batch_normalisation_is_torch_in_training_and_at_prediction():
    generator = np.random.default_rng(3)
    layer = Normalise("batch")
    twin = torch.nn.BatchNorm2d(4)  # torch's momentum 0.1 is Linen's 0.9
    x = jnp.asarray(generator.normal(2.0, 3.0, (2, 8, 8, 4)), jnp.float32)
    variables = layer.init(jax.random.key(0), x, True)
    for _ in range(3):
        x = jnp.asarray(generator.normal(2.0, 3.0, (2, 8, 8, 4)), jnp.float32)
        y, updated = layer.apply(variables, x, True, mutable=["batch_stats"])
        variables = {**variables, **updated}
        expected = twin(torch.from_numpy(np.array(x).transpose(0, 3, 1, 2).copy()))
        np.testing.assert_allclose(
            y, expected.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5, rtol=1e-5
        )
    statistics = variables["batch_stats"]["batch"]
    np.testing.assert_allclose(statistics["mean"], twin.running_mean.numpy(), rtol=1e-5)
    # torch keeps the unbiased variance: n / (n - 1) with n = 2·8·8; 0.9³ is the initial 1's share.
    unbiased = (np.array(statistics["var"]) - 0.9**3) * 128 / 127 + 0.9**3
    np.testing.assert_allclose(unbiased, twin.running_var.numpy(), rtol=1e-4)


def test_group_normalisation_is_torch():
    x = jnp.asarray(np.random.default_rng(4).normal(2.0, 3.0, (2, 6, 6, 16)), jnp.float32)
    layer = Normalise("group")
    y = layer.apply(layer.init(jax.random.key(0), x, True), x, True)
    twin = torch.nn.GroupNorm(2, 16)  # 16 channels in groups of 8
    expected = twin(torch.from_numpy(np.array(x).transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(y, expected.transpose(0, 2, 3, 1), atol=1e-5)


def test_dropout_follows_the_sample_not_its_place():
    x = jnp.ones((4, 3, 3, 64))
    keys = jax.random.split(jax.random.key(5), 4)
    layer = ChannelDropout(0.25)
    y = np.array(layer.apply({}, x, keys))
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(layer.apply({}, x, keys[order]), y[order])
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}  # kept channels keep the mean
    np.testing.assert_array_equal(y.min(axis=(1, 2)), y.max(axis=(1, 2)))  # whole channels
    dropped = (y[:, 0, 0] == 0).mean()
    assert 0.1 < dropped < 0.4  # 256 draws at 0.25: ± 5 standard deviations of 0.027
    np.testing.assert_array_equal(layer.apply({}, x, None), x)
