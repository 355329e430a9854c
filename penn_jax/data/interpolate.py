"""Linear and nearest sampling of an array under an affine map, several channels at once.

SciPy's ``affine_transform`` does the same for one channel at a time, and computes the places of
the voxels anew for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from jaxtyping import Float32, Float64, Int, Shaped, UInt8

from penn_jax.types import IGNORE_LABEL

_BAND_VOXELS = 8192


def sample_linear(
    array: Float32[np.ndarray, "*box C"],
    matrix: Float64[np.ndarray, "n n"],
    origin: Float64[np.ndarray, " n"],
    size: Sequence[int],
) -> Float32[np.ndarray, "*size C"]:
    """Linear interpolation at ``origin + matrix @ o`` for every voxel o of ``size``.

    Outside, the array continues with its edge.
    """
    if _is_shift(matrix, origin):
        return _window(array, origin, size, mode="edge")
    # Channels first: long rows are what NumPy is fast with.
    planes = np.ascontiguousarray(np.moveaxis(array, -1, 0)).reshape(array.shape[-1], -1)
    lengths, strides = array.shape[:-1], _strides(array.shape[:-1])
    sampled = np.empty((*size, array.shape[-1]), np.float32)
    for rows in _bands(size):
        index, weights = np.zeros((), np.intp), []
        for place, length, stride in zip(
            _places(matrix, origin, size, rows), lengths, strides, strict=True
        ):
            place = np.clip(place, 0, length - 1)
            # The last interval takes its own end, so that both neighbours are there.
            low = np.minimum(place.astype(np.intp), max(length - 2, 0))
            index = index + low * stride
            weights.append((place - low).astype(np.float32))
        total = np.zeros((), np.float32)
        for corner in product((0, 1), repeat=len(weights)):
            # An axis of length one has no second neighbour; its weight is zero.
            beside = [side * (n > 1) for side, n in zip(corner, lengths, strict=True)]
            weight = np.ones((), np.float32)
            for side, share in zip(corner, weights, strict=True):
                weight = weight * (share if side else 1 - share)
            total = total + weight * planes.take(index + np.dot(beside, strides), axis=1)
        sampled[rows] = np.moveaxis(total, 0, -1)
    return sampled


def sample_nearest(
    labels: UInt8[np.ndarray, "*box"],
    matrix: Float64[np.ndarray, "n n"],
    origin: Float64[np.ndarray, " n"],
    size: Sequence[int],
) -> UInt8[np.ndarray, "*size"]:
    """The label nearest to ``origin + matrix @ o`` for every voxel o of ``size``; 255 outside."""
    if _is_shift(matrix, origin):
        return _window(labels, origin, size, mode="constant", constant_values=IGNORE_LABEL)
    voxels, strides = labels.ravel(), _strides(labels.shape)
    sampled = np.empty(tuple(size), np.uint8)
    for rows in _bands(size):
        index, inside = np.zeros((), np.intp), np.ones((), bool)
        for place, length, stride in zip(
            _places(matrix, origin, size, rows), labels.shape, strides, strict=True
        ):
            inside = inside & (place >= 0) & (place <= length - 1)
            index = index + np.clip(np.rint(place), 0, length - 1).astype(np.intp) * stride
        sampled[rows] = np.where(inside, voxels.take(index), np.uint8(IGNORE_LABEL))
    return sampled


def _bands(size: Sequence[int]) -> Iterator[slice]:
    """Parts of the first axis.

    Small enough that what is computed in between stays in the cache: fresh memory for whole
    patches would cost more, in page faults, than the arithmetic.
    """
    rows = max(1, _BAND_VOXELS // math.prod(size[1:]))
    for start in range(0, size[0], rows):
        yield slice(start, min(start + rows, size[0]))


def _places(
    matrix: Float64[np.ndarray, "n n"],
    origin: Float64[np.ndarray, " n"],
    size: Sequence[int],
    rows: slice,
) -> list[Float64[np.ndarray, "*band"]]:
    """For each axis of the array, where along it the voxels of a band of ``size`` lie."""
    ranges = [np.arange(rows.start, rows.stop), *(np.arange(length) for length in size[1:])]
    along = np.ix_(*ranges)
    return [
        start + sum(share * o for share, o in zip(row, along, strict=True))
        for start, row in zip(origin, matrix, strict=True)
    ]


def _strides(shape: Sequence[int]) -> Int[np.ndarray, " n"]:
    """Voxels from one to the next along each axis."""
    return np.cumprod([1, *shape[:0:-1]])[::-1]


def _is_shift(matrix: Float64[np.ndarray, "n n"], origin: Float64[np.ndarray, " n"]) -> bool:
    """Whether the samples are voxels themselves: no rotation, scaling or flip."""
    return bool((matrix == np.eye(len(origin))).all() and (origin == np.round(origin)).all())


def _window(
    array: Shaped[np.ndarray, "*box"], origin: Float64[np.ndarray, " n"], size: Sequence[int], **pad
) -> Shaped[np.ndarray, "*size"]:
    start = origin.astype(int).tolist()
    around = [
        (max(0, -a), max(0, a + s - n)) for a, s, n in zip(start, size, array.shape, strict=False)
    ]
    inside = tuple(slice(max(0, a), a + s) for a, s in zip(start, size, strict=True))
    around += [(0, 0)] * (array.ndim - len(around))
    return np.pad(array[inside], around, **pad)
