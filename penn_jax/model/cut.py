"""Patches cut on the device out of frames that lie in its memory.

The same patches as ``data/patches.py`` cuts on the host, up to float32 rounding of the places: a
choice for accelerators that train faster than the host's cores can interpolate. What the host then
sends for each patch is its draw, some 70 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from penn_jax.types import IGNORE_LABEL


class DeviceFrames(NamedTuple):
    """All frames of all cases, one after the other, each in an array of the largest one's size."""

    image: Float[Array, "N *largest C"]
    label: UInt8[Array, "N *largest"]
    first: Int[Array, " cases"]
    """Number of each case's first frame."""
    shape: Int[Array, "cases axes"]
    """(F, *spatial) of each case."""


def cut(
    frames: DeviceFrames, place: Float[Array, "B m"], size: Sequence[int], neighbours: int = 0
) -> tuple[Float[Array, "B *size D"], UInt8[Array, "B *size"]]:
    """Cut drawn patches: the image by linear interpolation, its label from the nearest voxel.

    Beyond its frame the image continues with the edge and the label is 255.

    Args:
        frames: of the cases that are drawn from.
        place: case number, frame, centre and matrix of each patch, as the loader gives them.
        size: of the patches, fixed when this is compiled.
        neighbours: slices on each side that join as channels; beyond the ends the last repeats.

    Returns:
        image float32 (B, *size, C · (2 · neighbours + 1)) and label (B, *size).
    """
    return jax.vmap(partial(_cut_one, frames, tuple(size), neighbours))(place)


def _cut_one(
    frames: DeviceFrames, size: tuple[int, ...], neighbours: int, place: Float[Array, " m"]
) -> tuple[Float[Array, "*size D"], UInt8[Array, "*size"]]:
    axes = len(size)
    case, frame = place[0].astype(jnp.int32), place[1].astype(jnp.int32)
    centre, matrix = place[2 : 2 + axes], place[2 + axes :].reshape(axes, axes)
    first, last = frames.first[case], frames.shape[case] - 1
    along = jnp.meshgrid(
        *(jnp.arange(length) - (length - 1) / 2 for length in size), indexing="ij", sparse=True
    )
    places = [centre[a] + sum(matrix[a, b] * along[b] for b in range(axes)) for a in range(axes)]
    slices = first + jnp.clip(frame + jnp.arange(-neighbours, neighbours + 1), 0, last[0])
    image = _linear(frames.image, slices.reshape(-1, *[1] * axes), places, last[1:])
    image = jnp.moveaxis(image, 0, -2).reshape(*size, -1)
    return image, _nearest(frames.label, first + frame, places, last[1:])


def _linear(
    image: Float[Array, "N *largest C"],
    slices: Int[Array, "S *ones"],
    places: Sequence[Float[Array, "*size"]],
    last: Int[Array, " axes"],
) -> Float[Array, "S *size C"]:
    inside = [jnp.clip(place, 0.0, end) for place, end in zip(places, last, strict=True)]
    below = [jnp.floor(place) for place in inside]
    shares = [place - low for place, low in zip(inside, below, strict=True)]
    total = jnp.zeros(())
    for corner in product((0, 1), repeat=len(places)):
        index = (
            jnp.minimum(low.astype(jnp.int32) + side, end)
            for low, side, end in zip(below, corner, last, strict=True)
        )
        weight = jnp.ones(())
        for share, side in zip(shares, corner, strict=True):
            weight = weight * (share if side else 1 - share)
        values = image.at[(slices, *index)].get(mode="promise_in_bounds")
        total = total + weight[None, ..., None] * values.astype(jnp.float32)
    return total


def _nearest(
    label: UInt8[Array, "N *largest"],
    frame: Int[Array, ""],
    places: Sequence[Float[Array, "*size"]],
    last: Int[Array, " axes"],
) -> UInt8[Array, "*size"]:
    index, inside = [], jnp.ones((), bool)
    for place, end in zip(places, last, strict=True):
        inside = inside & (place >= 0) & (place <= end)
        index.append(jnp.clip(jnp.rint(place).astype(jnp.int32), 0, end))
    found = label.at[(frame, *index)].get(mode="promise_in_bounds")
    return jnp.where(inside, found, jnp.uint8(IGNORE_LABEL))
