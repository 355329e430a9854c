"""Painting in voxels: the share of each that a shape covers, and random texture to fill it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from penn_jax.data.spine import Chart


class Blob(NamedTuple):
    """An ellipsoid in the spine's coordinates: its middle and its radii, in mm."""

    along: float
    behind: float
    beside: float
    radius_along: float
    radius_behind: float
    radius_beside: float


def cover(distance: Float[np.ndarray, "*grid"], edge: float) -> Float[np.ndarray, "*grid"]:
    """Share of a voxel inside a surface: clip(1/2 − distance/edge, 0, 1), distance < 0 inside."""
    return np.clip(0.5 - distance / np.float32(edge), 0, 1)


def paint(
    image: Float32[np.ndarray, "X Y Z"],
    share: Float[np.ndarray, "#X #Y #Z"] | Float[np.ndarray, "#Y #Z"],
    value: float | Float[np.ndarray, "#X #Y #Z"] | Float[np.ndarray, "#Y #Z"],
) -> None:
    """Lay a tissue over the image, in place: image ← image + share·(value − image)."""
    image += share * (value - image)


def rounded_box(
    a: Float[np.ndarray, "*grid"], b: Float[np.ndarray, "*grid"], radius: float
) -> Float[np.ndarray, "*grid"]:
    """Signed distance in mm to a rectangle whose sides are at a = 0 and b = 0, corners rounded."""
    a, b = a + radius, b + radius
    return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - radius


def smooth_field(
    rng: np.random.Generator,
    axes: Sequence[Float[np.ndarray, " _"]],
    scale: Sequence[float] | float,
) -> Float32[np.ndarray, "*grid"]:
    """Gaussian random field of variance one: white noise on knots, blurred along each axis.

    Args:
        rng: draws the knots.
        axes: coordinates of the grid in mm.
        scale: standard deviation in mm of the blur, for each axis or for all.
    """
    scales = np.broadcast_to(scale, len(axes))
    knots = [np.arange(a[0] - 3 * s, a[-1] + 3 * s, s) for a, s in zip(axes, scales, strict=True)]
    field = rng.standard_normal([len(k) for k in knots], dtype=np.float32)
    for axis, knot, s in zip(axes, knots, scales, strict=True):
        weights = np.exp(-0.5 * ((axis[:, None] - knot) / s) ** 2)
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        # Contracting the first axis and appending the result turns all axes once round.
        field = np.tensordot(field, weights.astype(np.float32), axes=(0, 1))
    return field


def around(c: Chart, blobs: Sequence[Blob], margin: float = 8.0) -> tuple[slice, slice, slice]:
    """The part of the grid that holds the blobs and a margin in mm, which also allows for bend."""
    near_plane = np.zeros(c.along.shape, bool)
    near_across = np.zeros(c.axes[0].shape, bool)
    for blob in blobs:
        near_plane |= (np.abs(c.along - blob.along) < blob.radius_along + margin) & (
            np.abs(c.behind - blob.behind) < blob.radius_behind + margin
        )
        near_across |= np.abs(c.axes[0] - blob.beside) < blob.radius_beside + margin + c.slab
    return (
        _span(np.flatnonzero(near_across)),
        _span(np.flatnonzero(near_plane.any(axis=1))),
        _span(np.flatnonzero(near_plane.any(axis=0))),
    )


def _span(places: Int[np.ndarray, " n"]) -> slice:
    """From the first place to the last; empty if there is none."""
    return slice(places[0], places[-1] + 1) if places.size else slice(0, 0)


def distance_to_blobs(
    c: Chart, blobs: Sequence[Blob], shift: float = 0.0
) -> Float[np.ndarray, "X Y Z"]:
    """Distance in mm to the union of ellipsoids, exact on the surface to first order.

    With k = |x/r| and g = |x/r²| the distance to one of them is k(k − 1)/g; ``shift`` moves the
    grid across the slices.
    """
    nearest = np.full(c.beside.shape, np.inf, np.float32)
    for blob in blobs:
        along = (c.along - blob.along) / blob.radius_along
        behind = (c.behind - blob.behind) / blob.radius_behind
        beside = (c.beside + (shift - blob.beside)) / blob.radius_beside
        k = np.sqrt(along**2 + behind**2 + beside**2)
        in_plane = (along / blob.radius_along) ** 2 + (behind / blob.radius_behind) ** 2
        g = np.sqrt(in_plane + (beside / blob.radius_beside) ** 2)
        ratio = (k + 1e-6) / (g + 1e-6 / min(blob[3:]))  # in the middle, 0/0: the smallest radius
        np.minimum(nearest, ratio * (k - 1), out=nearest)
    return nearest
