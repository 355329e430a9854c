"""A number of a scan's content, the same however the scan was stored: it finds copies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import permutations, product

import numpy as np
from jaxtyping import Real, UInt32

_SLAB = 1 << 20
"""Voxels looked at together: what is made of them stays small beside a large scan."""


def fingerprint(image: Real[np.ndarray, "X Y Z C"]) -> str:
    """SHA-256 of a scan's voxels, in an order and on a scale that storing does not change.

    Two scans have the same one if, and but for a collision of SHA-256 only if, a permutation and
    flips of the axes (48 ways, the same for all channels) and an increasing map of each channel's
    values turn one into the other. So name, compression, spacing, affine, description, slope,
    intercept and any data type that keeps the values apart do not matter; one voxel changed,
    moved or cropped does. A scan that was resampled, denoised or lossily compressed is another.

    The scale: every value becomes its dense rank r among its channel's values. The order: each axis
    is described by the sums of r over its slices, read in the direction that gives the smaller
    vector, and the axes are sorted by these vectors. Where they tie, as for a symmetric image, the
    smallest hash of the orders left counts: sums choose the order, they never replace the content.

    Memory: the ranks, 4 bytes a voxel, and while they are made one channel sorted.

    Args:
        image: (X, Y, Z, C), finite.

    Returns:
        64 hexadecimal digits.
    """
    # The answer is the same from any order; from that of the memory it comes many times faster.
    memory = sorted(range(3), key=lambda axis: -abs(image.strides[axis]))
    ranks = _dense_ranks(image.transpose(*memory, 3))
    return min(_sha256(view) for view in _canonical_views(ranks))


def _dense_ranks(image: Real[np.ndarray, "X Y Z C"]) -> UInt32[np.ndarray, "X Y Z C"]:
    """The place of each voxel's value among the different values of its channel, from 0."""
    ranks = np.empty(image.shape, "<u4")
    rows = max(1, _SLAB // max(1, image[0, ..., 0].size))
    for channel in range(image.shape[-1]):
        values = np.unique(image[..., channel])
        for start in range(0, len(image), rows):
            slab = image[start : start + rows, ..., channel]
            # Sorted before they are searched for: neighbours in the cache, not all over the memory.
            found, places = np.unique(slab, return_inverse=True)
            slab_ranks = np.searchsorted(values, found).astype(ranks.dtype)[places]
            ranks[start : start + rows, ..., channel] = slab_ranks.reshape(slab.shape)
    return ranks


def _canonical_views(ranks: UInt32[np.ndarray, "X Y Z C"]) -> Iterator[np.ndarray]:
    """One order of the axes and of their directions, or those that the sums cannot tell apart."""
    keys, directions = [], []
    for axis in range(3):
        sums = ranks.sum(axis=tuple({0, 1, 2} - {axis}), dtype="<u8")
        forward, backward = sums.tobytes(), sums[::-1].tobytes()
        keys.append((len(sums), min(forward, backward)))
        # An axis of one slice is its own mirror image.
        both = {1: forward} if len(sums) == 1 else {1: forward, -1: backward}
        directions.append([step for step, key in both.items() if key == keys[axis][1]])
    for order in permutations(range(3)):
        if [keys[axis] for axis in order] == sorted(keys):
            for steps in product(*directions):
                flipped = ranks[tuple(slice(None, None, step) for step in steps)]
                yield flipped.transpose(*order, 3)


def _sha256(ranks: UInt32[np.ndarray, "X Y Z C"]) -> str:
    digest = hashlib.sha256(repr(ranks.shape).encode())
    rows = max(1, _SLAB // max(1, ranks[0].size))
    for start in range(0, len(ranks), rows):
        digest.update(np.ascontiguousarray(ranks[start : start + rows]).data)
    return digest.hexdigest()
