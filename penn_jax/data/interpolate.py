"""Linear and nearest sampling of frames under an affine map, compiled by Numba.

SciPy's ``affine_transform`` does the same for one channel at a time and computes the places of the
voxels anew for each; NumPy writes every intermediate value to memory. Both take several times as
long (``benchmarks/pipeline.py``), and a training step has only so long to wait for its patches.

A row of the result is done in two passes, first where its voxels lie and then what lies there:
the first then runs on several voxels at once. Two axes are three of which the first has length one.
Where the tests check types at run time Numba must be given the functions as they stand here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import no_type_check

import numpy as np
from jaxtyping import Float32, Float64, Int, UInt8
from numba import njit

from penn_jax.types import IGNORE_LABEL


def sample_linear(
    frames: Float32[np.ndarray, "F *box C"],
    chosen: Int[np.ndarray, " chosen"],
    matrix: Float64[np.ndarray, "n n"],
    origin: Float64[np.ndarray, " n"],
    size: Sequence[int],
) -> Float32[np.ndarray, "*size M"]:
    """Linear interpolation at ``origin + matrix @ o`` for every voxel o of ``size``.

    Outside, a frame continues with its edge.

    Args:
        frames: of one case, two or three spatial axes and the channels.
        chosen: numbers of the frames to sample, all at the same places.
        matrix: from a step in the result to a step in a frame.
        origin: the first voxel's place.
        size: of the result.

    Returns:
        The channels of the chosen frames, frame by frame: M = C · len(chosen).
    """
    more = (1,) * (3 - len(size))
    volumes = np.ascontiguousarray(frames).reshape(len(frames), *more, *frames.shape[1:])
    sampled = np.empty((*more, *size, len(chosen) * frames.shape[-1]), np.float32)
    _linear(volumes, chosen, *_in_three_axes(matrix, origin), sampled)
    return sampled.reshape(*size, -1)


def sample_nearest(
    labels: UInt8[np.ndarray, "*box"],
    matrix: Float64[np.ndarray, "n n"],
    origin: Float64[np.ndarray, " n"],
    size: Sequence[int],
) -> UInt8[np.ndarray, "*size"]:
    """The label nearest to ``origin + matrix @ o`` for every voxel o of ``size``; 255 outside."""
    more = (1,) * (3 - len(size))
    volume = np.ascontiguousarray(labels).reshape(*more, *labels.shape)
    sampled = np.empty((*more, *size), np.uint8)
    _nearest(volume, *_in_three_axes(matrix, origin), sampled)
    return sampled.reshape(size)


def _in_three_axes(
    matrix: Float64[np.ndarray, "n n"], origin: Float64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "3"]]:
    missing = 3 - len(origin)
    whole, start = np.eye(3), np.zeros(3)
    whole[missing:, missing:], start[missing:] = matrix, origin
    return whole, start


@njit(nogil=True)
@no_type_check
def _linear(volumes, chosen, matrix, origin, sampled):
    planes, rows, columns, channels = volumes.shape[1:]
    flat = volumes.reshape(-1)
    # From a voxel to the next along each axis. An axis of length one has none; its weight is zero.
    behind = rows * columns * channels if planes > 1 else 0
    below = columns * channels if rows > 1 else 0
    beside = channels if columns > 1 else 0

    width = sampled.shape[2]
    first = np.empty(width, np.uintp)
    weights = np.empty((3, width), np.float32)
    for p in range(sampled.shape[0]):
        for r in range(sampled.shape[1]):
            for c in range(width):
                z = _within(_place(matrix, origin, 0, p, r, c), planes)
                y = _within(_place(matrix, origin, 1, p, r, c), rows)
                x = _within(_place(matrix, origin, 2, p, r, c), columns)
                # The last interval takes its own end, so that both neighbours are there.
                plane = min(int(z), max(planes - 2, 0))
                row = min(int(y), max(rows - 2, 0))
                column = min(int(x), max(columns - 2, 0))
                first[c] = ((plane * rows + row) * columns + column) * channels
                weights[0, c] = z - plane
                weights[1, c] = y - row
                weights[2, c] = x - column
            for k in range(len(chosen)):
                start = np.uintp(chosen[k] * planes * rows * columns * channels)
                for m in range(channels):
                    for c in range(width):
                        at = start + first[c] + np.uintp(m)
                        value = _in_plane(flat, at, below, beside, weights[1, c], weights[2, c])
                        if planes > 1:
                            other = _in_plane(
                                flat,
                                at + np.uintp(behind),
                                below,
                                beside,
                                weights[1, c],
                                weights[2, c],
                            )
                            value = _between(value, other, weights[0, c])
                        sampled[p, r, c, k * channels + m] = value


@njit(nogil=True)
@no_type_check
def _nearest(volume, matrix, origin, sampled):
    planes, rows, columns = volume.shape
    flat = volume.reshape(-1)
    width = sampled.shape[2]
    voxel = np.empty(width, np.intp)
    for p in range(sampled.shape[0]):
        for r in range(sampled.shape[1]):
            for c in range(width):
                z = _place(matrix, origin, 0, p, r, c)
                y = _place(matrix, origin, 1, p, r, c)
                x = _place(matrix, origin, 2, p, r, c)
                inside = _within(z, planes) == z and _within(y, rows) == y
                inside = inside and _within(x, columns) == x
                index = (int(np.rint(z)) * rows + int(np.rint(y))) * columns + int(np.rint(x))
                voxel[c] = index if inside else -1
            for c in range(width):
                sampled[p, r, c] = flat[np.uintp(voxel[c])] if voxel[c] >= 0 else IGNORE_LABEL


@njit
@no_type_check
def _place(matrix, origin, axis, p, r, c):
    """Where voxel (p, r, c) of the result lies along an axis of the volume."""
    return origin[axis] + (matrix[axis, 0] * p + matrix[axis, 1] * r + matrix[axis, 2] * c)


@njit
@no_type_check
def _within(place, length):
    return min(max(place, 0.0), length - 1.0)


@njit
@no_type_check
def _between(one, other, weight):
    # Exactly ``one`` and ``other`` at the weights 0 and 1: a shift or a flip changes no voxel.
    return one * (1 - weight) + other * weight


@njit
@no_type_check
def _in_plane(flat, at, below, beside, down, across):
    # Unsigned, or each index would first be looked at for a count from the end.
    under = at + np.uintp(below)
    upper = _between(flat[at], flat[at + np.uintp(beside)], across)
    lower = _between(flat[under], flat[under + np.uintp(beside)], across)
    return _between(upper, lower, down)
