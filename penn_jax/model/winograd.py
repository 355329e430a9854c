"""A convolution three wide in two axes with fewer products, for CPUs: Winograd's F(2×2, 3×3).

Of every 4×4 tile of the input (tiles overlap by two) 16 sums are formed, and 16 of the kernel;
their products, added up over the channels, give the tile's 2×2 outputs by further sums. Over all
tiles these are 16 matrix products with a quarter of the rows that a plain convolution's 9 have:
2.25 times fewer multiplications. No sum has a factor above 1, so the rounding error is that of a
plain convolution. Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Along one axis: outputs = _OUTPUT · ((_KERNEL · kernel) * (_INPUT · inputs)).
_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
_STEP = 2
"""From tile to tile: the outputs of a tile along one axis."""

Parts = Sequence[Sequence[Array]]
"""Arrays of one shape, one for each place of a tile: parts[row][column]."""


def convolve_tiles(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C O"]
) -> Float[Array, "B H W O"]:
    """The convolution of stride 1 with zeros around: the output is as large as ``x``."""
    return _convolve_sums(x, _on_both_axes(_KERNEL, kernel))


def input_gradient_of_tiles(
    gradient: Float[Array, "B H W O"], kernel: Float[Array, "3 3 C O"]
) -> Float[Array, "B H W C"]:
    """The gradient of the input, given that of the output: a convolution with the mirrored kernel.

    Mirroring swaps a kernel's first and last sum and keeps those between, so that the compiler
    forms the sums once for this and for :func:`convolve_tiles`.
    """
    sums, mirrored = _on_both_axes(_KERNEL, kernel), (3, 1, 2, 0)
    return _convolve_sums(gradient, [[sums[i][j].T for j in mirrored] for i in mirrored])


def _convolve_sums(x: Array, kernels: Parts) -> Array:
    batch, height, width, _ = x.shape
    products = _products(_input_sums(x), kernels)
    outputs = _on_both_axes(_OUTPUT, products)
    y = jnp.stack([jnp.stack(row, axis=3) for row in outputs], axis=2)
    _, down, _, across, *_ = y.shape
    return y.reshape(batch, down * _STEP, across * _STEP, -1)[:, :height, :width]


def kernel_gradient_of_tiles(
    x: Float[Array, "B H W C"], gradient: Float[Array, "B H W O"]
) -> Float[Array, "3 3 C O"]:
    """The gradient of the kernel, given that of the output: the same sums, transposed."""
    outputs = _on_both_axes(_OUTPUT.T, _every_second(_even(gradient), _STEP))
    transposed = [[_matrix(part).T for part in row] for row in _input_sums(x)]
    products = _products(transposed, [[_matrix(part) for part in row] for row in outputs])
    return jnp.stack([jnp.stack(row) for row in _on_both_axes(_KERNEL.T, products)])


def _input_sums(x: Array) -> Parts:
    around = jnp.pad(_even(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return _on_both_axes(_INPUT, _every_second(around, len(_INPUT)))


def _even(x: Array) -> Array:
    """With a row and a column of zeros where their number is odd."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))


def _every_second(x: Array, size: int) -> Parts:
    """The voxels at each place of the tiles of that size which fit into ``x``."""
    rows, columns = (length - size + 1 for length in x.shape[1:3])
    return [
        [x[:, i : i + rows : _STEP, j : j + columns : _STEP] for j in range(size)]
        for i in range(size)
    ]


def _matrix(part: Array) -> Array:
    return part.reshape(-1, part.shape[-1])


def _products(left: Parts, right: Parts) -> Parts:
    return [[a @ b for a, b in zip(*rows, strict=True)] for rows in zip(left, right, strict=True)]


def _on_both_axes(matrix: np.ndarray, parts: Parts | Array) -> Parts:
    """``matrix · parts · matrix.T``, each entry of ``parts`` an array."""
    down = [_sums(matrix, column) for column in zip(*parts, strict=True)]
    return [_sums(matrix, row) for row in zip(*down, strict=True)]


def _sums(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """``matrix · parts``, without what is multiplied by 0."""
    return [
        reduce(
            add, (float(factor) * part for factor, part in zip(row, parts, strict=True) if factor)
        )
        for row in matrix
    ]
