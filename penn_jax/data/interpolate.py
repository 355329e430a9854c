"""Sampling frames and labels under an affine map, compiled by Numba.

SciPy's ``affine_transform`` does the same for one channel at a time and computes the places of the
voxels anew for each; NumPy writes every intermediate value to memory. A training step has only so
long to wait for its patches.

A row of a patch is done in passes, first where its voxels lie and then what lies there: the first
then runs on several voxels at once. Two axes are three of which the first has length one and costs
nothing: what it adds to the places is a pass of its own.

Frames are copied before they are sampled, each with its last voxels once more at the far ends, so
that every voxel has a next one. Read in order a frame also comes out of memory at once and is then
in the cache; a rotated walk through memory would wait at every step, longer than the copy takes.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from numba import njit

from penn_jax.types import IGNORE_LABEL


def sample(
    frames: Float32[np.ndarray, "F *box C"],
    labels: UInt8[np.ndarray, "*box"] | None,
    matrix: Float64[np.ndarray, "n n"],
    origin: Float64[np.ndarray, " n"],
    image: Float32[np.ndarray, "*size M"],
    label: UInt8[np.ndarray, "*size"],
) -> None:
    """Sample frames linearly and labels nearest at ``origin + matrix @ o``, o a voxel of a patch.

    Outside, a frame continues with its edge, and the label is 255.

    Args:
        frames: of one case, two or three spatial axes and the channels.
        labels: of one of them; without, the label is 255 everywhere.
        matrix: from a step in the patch to a step in a frame.
        origin: the first voxel's place.
        image: is written, in one piece of memory: the channels of the frames, frame by
            frame; M = F · C.
        label: is written.
    """
    axes = len(origin)
    box = frames.shape[1:-1]
    matrix3, origin3, last3 = np.zeros((3, 3)), np.zeros(3), np.zeros(3)
    matrix3[-axes:, -axes:], origin3[-axes:], last3[-axes:] = matrix, origin, np.subtract(box, 1)

    number, channels = len(frames), frames.shape[-1]
    frames = _with_far_ends(frames)
    if axes == 2:
        frames, box, image, label = frames[:, None], (1, *box), image[None], label[None]
    # A tuple's length is known when it is compiled for: the loops over frames and channels have
    # no turns then, which a quarter of the time went into.
    _linear(frames, (0,) * number, (0,) * channels, matrix3, origin3, last3, image)
    if labels is None:
        label[...] = IGNORE_LABEL
    else:
        _nearest(_with_outside(labels), box, matrix3, origin3, last3, label)


def _with_far_ends(
    frames: Float32[np.ndarray, "F *box C"],
) -> Float32[np.ndarray, "F *edged C"]:
    number, *box, channels = frames.shape
    edged = np.empty((number, *(length + 1 for length in box), channels), np.float32)
    edged[(slice(None), *(slice(0, length) for length in box))] = frames
    for axis in range(1, 1 + len(box)):
        along = (slice(None),) * axis
        edged[(*along, -1)] = edged[(*along, -2)]
    return edged


def _with_outside(labels: UInt8[np.ndarray, "*box"]) -> UInt8[np.ndarray, " voxels_and_one"]:
    values = np.empty(labels.size + 1, np.uint8)
    values[:-1].reshape(labels.shape)[...] = labels
    values[-1] = IGNORE_LABEL
    return values


# no_type_check: the tests wrap functions in type checks, which Numba cannot compile.


@njit(nogil=True)
@no_type_check
def _linear(volumes, each_frame, each_channel, matrix, origin, last, image):
    planes, rows, columns = volumes.shape[1:4]
    values, found = volumes.reshape(-1), image.reshape(-1)
    width = image.shape[2]
    # Unsigned, or each index would be looked at for a count from the end.
    beside = np.uintp(len(each_channel))
    below, behind = beside * np.uintp(columns), beside * np.uintp(columns * rows)
    volume, at = behind * np.uintp(planes), np.uintp(0)
    voxel = np.empty(width, np.uintp)
    weights = np.empty((3, width), np.float32)
    for p in range(image.shape[0]):
        for r in range(image.shape[1]):
            first_z = origin[0] + (matrix[0, 0] * p + matrix[0, 1] * r)
            first_y = origin[1] + (matrix[1, 0] * p + matrix[1, 1] * r)
            first_x = origin[2] + (matrix[2, 0] * p + matrix[2, 1] * r)
            for c in range(width):
                y = min(max(first_y + matrix[1, 2] * c, 0.0), last[1])
                x = min(max(first_x + matrix[2, 2] * c, 0.0), last[2])
                row, column = np.int32(y), np.int32(x)
                voxel[c] = (row * columns + column) * len(each_channel)
                weights[1, c] = y - row
                weights[2, c] = x - column
            if planes > 1:
                for c in range(width):
                    z = min(max(first_z + matrix[0, 2] * c, 0.0), last[0])
                    plane = np.int32(z)
                    voxel[c] += np.uintp(plane) * behind
                    weights[0, c] = z - plane
            for c in range(width):
                here, down, across = voxel[c], weights[1, c], weights[2, c]
                for _ in range(len(each_frame)):
                    for m in range(len(each_channel)):
                        start = here + np.uintp(m)
                        value = _in_plane(values, start, beside, below, down, across)
                        if planes > 1:
                            start += behind
                            other = _in_plane(values, start, beside, below, down, across)
                            value += (other - value) * weights[0, c]
                        found[at] = value
                        at += np.uintp(1)
                    here += volume


@njit
@no_type_check
def _in_plane(values, at, beside, below, down, across):
    # One voxel exactly where both weights are zero: a shift or a flip changes none.
    upper = values[at] + (values[at + beside] - values[at]) * across
    under = at + below
    lower = values[under] + (values[under + beside] - values[under]) * across
    return upper + (lower - upper) * down


@njit(nogil=True)
@no_type_check
def _nearest(values, box, matrix, origin, last, label):
    _, rows, columns = box
    outside = len(values) - 1
    width = label.shape[2]
    voxel = np.empty(width, np.uintp)
    for p in range(label.shape[0]):
        for r in range(label.shape[1]):
            first_z = origin[0] + (matrix[0, 0] * p + matrix[0, 1] * r)
            first_y = origin[1] + (matrix[1, 0] * p + matrix[1, 1] * r)
            first_x = origin[2] + (matrix[2, 0] * p + matrix[2, 1] * r)
            # Without branches, so that several voxels are done at once.
            for c in range(width):
                y = first_y + matrix[1, 2] * c
                x = first_x + matrix[2, 2] * c
                inside = (min(max(y, 0.0), last[1]) == y) & (min(max(x, 0.0), last[2]) == x)
                row, column = int(np.rint(y)), int(np.rint(x))
                voxel[c] = row * columns + column if inside else outside
            if first_z != 0.0 or matrix[0, 2] != 0.0:
                for c in range(width):
                    z = first_z + matrix[0, 2] * c
                    inside = (min(max(z, 0.0), last[0]) == z) & (voxel[c] != outside)
                    plane = int(np.rint(z))
                    voxel[c] = voxel[c] + plane * rows * columns if inside else outside
            for c in range(width):
                label[p, r, c] = values[voxel[c]]
