"""A three-wide convolution that is trained on CPUs in fewer operations than XLA's own.

Where it is differentiated, large maps in two axes go through Winograd's algorithm
(``winograd.py``). Elsewhere, on a CPU, the kernel's gradient is one matrix product for each place
of the kernel, of the features there and the gradient of the output: XLA computes it as a
convolution with a window as large as the image, on one core. Other devices keep XLA's ways.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from penn_jax.model.winograd import (
    convolve_tiles,
    input_gradient_of_tiles,
    kernel_gradient_of_tiles,
)

WIDTH = 3
_LARGE = 2**24
"""Multiplications of a convolution of one sample from which on Winograd's sums are worth it."""


@jax.custom_vjp
def convolve(
    x: Float[Array, "B *spatial C"], kernel: Float[Array, "*window C O"]
) -> Float[Array, "B *spatial O"]:
    """Convolution of width 3 and stride 1 with zeros around: the output is as large as ``x``.

    ``y[b, p, o] = sum over k, c of x[b, p + k - 1, c] · kernel[k, c, o]``, places p and k with two
    or three coordinates. Equal to ``torch.nn.functional.conv2d(padding=1)`` or ``conv3d``; float32
    or bfloat16. It has no derivative in forward mode (``jax.jvp``).
    """
    return _convolve(x, kernel)


def _convolve(x: Array, kernel: Array) -> Array:
    axes = x.ndim - 2
    spatial = "DHW"[-axes:]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return jax.lax.conv_general_dilated(
        x, kernel, (1,) * axes, [(1, 1)] * axes, dimension_numbers=layout
    )


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    on_cpu = convolve_tiles if _is_large(x, kernel) else _convolve
    y = jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=_convolve)
    return y, (x, kernel)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    if _is_large(x, kernel):
        on_cpu = input_gradient_of_tiles, kernel_gradient_of_tiles
    else:
        on_cpu = _input_gradient, by_products
    of_x = jax.lax.platform_dependent(gradient, kernel, cpu=on_cpu[0], default=_input_gradient)
    of_kernel = jax.lax.platform_dependent(x, gradient, cpu=on_cpu[1], default=by_convolution)
    return of_x, of_kernel


def _is_large(x: Array, kernel: Array) -> bool:
    """Whether to go by tiles, whatever the batch: shared by devices, the result is the same."""
    in_two_axes = x.ndim == 4 and x.dtype == jnp.float32
    return in_two_axes and math.prod(x.shape[1:3]) * kernel.size >= _LARGE


def _input_gradient(gradient: Array, kernel: Array) -> Array:
    mirrored = jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)
    return _convolve(gradient, mirrored)


def by_convolution(
    x: Float[Array, "B *spatial C"], gradient: Float[Array, "B *spatial O"]
) -> Float[Array, "*window C O"]:
    """Gradient of the kernel in XLA's own way."""
    window = (WIDTH,) * (x.ndim - 2)
    like = jax.ShapeDtypeStruct((*window, x.shape[-1], gradient.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _convolve(x, kernel), like)(gradient)[0]


def by_products(
    x: Float[Array, "B *spatial C"], gradient: Float[Array, "B *spatial O"]
) -> Float[Array, "*window C O"]:
    """Gradient of the kernel: at place k the sum over b, p of x[b, p + k - 1] ⊗ gradient[b, p]."""
    axes, channels, features = x.ndim - 2, x.shape[-1], gradient.shape[-1]
    # Moving either of the two is the same sum; the one with fewer channels is the cheaper to copy.
    moved, still = (x, gradient) if channels <= features else (gradient, x)
    padded = jnp.pad(moved, [(0, 0), *[(1, 1)] * axes, (0, 0)])
    still = still.reshape(-1, still.shape[-1])
    products = []
    for place in itertools.product(range(WIDTH), repeat=axes):
        starts = place if moved is x else [WIDTH - 1 - k for k in place]
        part = tuple(slice(a, a + n) for a, n in zip(starts, x.shape[1:-1], strict=True))
        there = padded[(slice(None), *part)].reshape(-1, moved.shape[-1])
        left, right = (there, still) if moved is x else (still, there)
        products.append(jnp.matmul(left.T, right, preferred_element_type=jnp.float32))
    kernel = jnp.stack(products).reshape(*(WIDTH,) * axes, channels, features)
    return kernel.astype(x.dtype)


convolve.defvjp(_forward, _backward)
