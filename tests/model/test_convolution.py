"""The convolution and its gradients against PyTorch's in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penn_jax.model import convolution
from penn_jax.model.convolution import by_convolution, by_products, convolve
from penn_jax.model.winograd import (
    convolve_tiles,
    input_gradient_of_tiles,
    kernel_gradient_of_tiles,
)


def _arrays(shape, channels, features, seed):
    generator = np.random.default_rng(seed)
    sizes = (
        (2, *shape, channels),
        (*(3,) * len(shape), channels, features),
        (2, *shape, features),
    )
    return [jnp.asarray(generator.normal(size=size), jnp.float32) for size in sizes]


def _torch(x, kernel, gradient):
    """Output, gradient of x and gradient of the kernel, float64."""
    axes = x.ndim - 2
    first = lambda a: torch.tensor(np.moveaxis(np.float64(a), -1, 1))  # noqa: E731
    image = first(x).requires_grad_()
    weight = torch.tensor(np.moveaxis(np.float64(kernel), (-1, -2), (0, 1))).requires_grad_()
    out = (torch.nn.functional.conv2d, torch.nn.functional.conv3d)[axes - 2](
        image, weight, padding=1
    )
    out.backward(first(gradient))
    back = np.moveaxis(weight.grad.numpy(), (0, 1), (-1, -2))
    return [np.moveaxis(a.detach().numpy(), 1, -1) for a in (out, image.grad)] + [back]


def _output_and_gradients(x, kernel, gradient):
    out, backward = jax.vjp(convolve, x, kernel)
    return out, *backward(gradient)


@settings(max_examples=15)  # each new shape compiles
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 2**31 - 1),
)
def test_output_and_gradients_are_pytorchs(shape, channels, features, compiled, seed):
    x, kernel, gradient = _arrays(shape, channels, features, seed)
    ours = (jax.jit if compiled else lambda f: f)(_output_and_gradients)(x, kernel, gradient)
    theirs = _torch(x, kernel, gradient)
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-4)
    for way in (by_products, by_convolution):
        np.testing.assert_allclose(way(x, gradient), theirs[2], rtol=1e-4, atol=1e-4)


def test_the_gradient_of_the_kernel_is_summed_in_float32():
    x, kernel, gradient = _arrays((16, 16), 3, 5, 0)
    half = [a.astype(jnp.bfloat16) for a in (x, kernel, gradient)]
    _, backward = jax.vjp(convolve, *half[:2])
    found = backward(half[2])[1]
    assert found.dtype == jnp.bfloat16
    _, _, expected = _torch(*(np.float32(a) for a in half))
    np.testing.assert_allclose(np.float32(found), expected, rtol=2**-8, atol=1e-2)


@settings(max_examples=15)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 2**31 - 1),
)
def test_tiles_give_pytorchs_convolution_and_gradients(shape, channels, features, seed):
    x, kernel, gradient = _arrays(shape, channels, features, seed)
    ours = (
        convolve_tiles(x, kernel),
        input_gradient_of_tiles(gradient, kernel),
        kernel_gradient_of_tiles(x, gradient),
    )
    for mine, reference in zip(ours, _torch(x, kernel, gradient), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-4)


def test_tiles_round_like_xla():
    x, kernel, gradient = _arrays((32, 32), 64, 64, 0)
    exact = _torch(x, kernel, gradient)
    plain = (
        convolution._convolve(x, kernel),
        convolution._input_gradient(gradient, kernel),
        by_convolution(x, gradient),
    )
    tiles = (
        convolve_tiles(x, kernel),
        input_gradient_of_tiles(gradient, kernel),
        kernel_gradient_of_tiles(x, gradient),
    )
    for one, other, reference in zip(plain, tiles, exact, strict=True):
        scale = np.abs(reference).max()
        of_plain, of_tiles = (np.abs(a - reference).max() / scale for a in (one, other))
        assert of_tiles < max(4 * of_plain, 2**-20)


@pytest.mark.parametrize(("shape", "products"), [((12, 9), 9), ((12, 10), 3 * 16)])
def test_large_maps_are_trained_by_tiles(monkeypatch, shape, products):
    x, kernel, gradient = _arrays(shape, 3, 5, 0)
    monkeypatch.setattr(convolution, "_LARGE", 12 * 10 * kernel.size)
    program = jax.jit(_output_and_gradients).trace(x, kernel, gradient)
    text = program.lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("stablehlo.dot_general") == products
    ours = jax.jit(_output_and_gradients)(x, kernel, gradient)
    for mine, reference in zip(ours, _torch(x, kernel, gradient), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [6, 96])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_devices_keep_their_own_way(platform, size):
    x, kernel, gradient = _arrays((size, size), 16, 16, 0)
    program = jax.jit(_output_and_gradients).trace(x, kernel, gradient)
    text = program.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.dot_general") == 0
    assert text.count("stablehlo.convolution") == 3
