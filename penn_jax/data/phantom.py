"""Synthetic gadolinium-enhanced T1 spines with tumours: what ``penn demo`` runs on.

Anatomy is analytic, in mm, in the coordinates of a curved spine (``Chart``): ``along`` the centre
line from the foot of L5 towards the head, ``behind`` it, and ``beside`` the middle plane. Each
tissue is painted over the last one by the share of the voxel it covers; coil, noise and storage
follow. Intensities are relative to subcutaneous fat, which is 1. Everything random is a function
of (seed, index).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from penn_jax.config import write_json
from penn_jax.data.volume import write_image
from penn_jax.types import InputError

# Sacrum, lumbar and thoracic levels from S4 up to T1, in mm: height of the body, height of the
# disc above it, half depth (front to back), half width.
LEVELS = np.array(
    [
        *((18, 2, 7, 12), (20, 2, 9, 18), (24, 3, 12, 24), (28, 10, 15, 28)),
        *((27, 11, 17, 25), (27, 11, 17.5, 24), (27, 10.5, 17, 23), (27, 10, 17, 22)),
        *((26, 8.5, 16.5, 21), (25, 7, 16, 20), (24, 6, 15.5, 19), (23, 5.5, 15, 17.5)),
        *((22, 5, 15, 16.5), (21.5, 5, 14.5, 16), (21, 5, 14, 15.5), (20.5, 5, 13.5, 15)),
        *((20, 4.5, 13, 15), (19.5, 4.5, 12, 15), (19, 4.5, 11, 15), (18, 4.5, 10, 15)),
        (17, 4.5, 9, 15),
    ]
)
SACRAL = 4
"""Number of levels below L5."""

# Forward lean in degrees of the centre line, going up, at these mm above the foot of L5:
# sacral kyphosis, lumbar lordosis, thoracic kyphosis.
LEAN = np.array(
    [
        *((-110, -10), (-65, 35), (-25, 46), (0, 38), (45, 18), (95, 2), (150, -12)),
        *((205, -16), (260, -10), (330, 4), (420, 20), (500, 28)),
    ]
)

# Ways to store a sagittal scan: the direction in which each array axis runs.
ORIENTATIONS = ("IPR", "IPL", "PIR", "AIL", "ASR", "SAL", "RAS", "LPS", "RSA", "LIP", "ILA", "PRS")
AXIS_OF = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


@dataclass(frozen=True)
class Spine:
    """The geometry drawn for one case; mm, in the frame (right, anterior, superior)."""

    line: Float[np.ndarray, "n 2"]
    """(anterior, superior) points of the centre line in the middle plane, from foot to head."""
    along: Float[np.ndarray, " n"]
    lean: Float[np.ndarray, " n"]
    """Radians."""
    bend: Float[np.ndarray, " n"]
    """Sideways shift of the centre line: scoliosis."""
    skin: Float[np.ndarray, " n"]
    """Anterior coordinate of the skin of the back at the same superior coordinate as ``line``."""
    centre: Float[np.ndarray, " levels"]
    """``along`` of the middle of each vertebral body."""
    size: Float[np.ndarray, "levels 4"]
    """As ``LEVELS``, with this case's scale."""


@dataclass(frozen=True)
class Chart:
    """Where each voxel lies in the spine's own coordinates, in mm; float32."""

    axes: tuple[np.ndarray, ...]
    """Coordinates of the grid (right, anterior, superior)."""
    along: Float32[np.ndarray, "Y Z"]
    behind: Float32[np.ndarray, "Y Z"]
    beside: Float32[np.ndarray, "X Y Z"]
    under_skin: Float32[np.ndarray, "Y Z"]
    edge: float
    """Width in plane over which partial volume blurs an edge: one voxel."""
    slab: float
    """The same across the slices."""

    def crop(self, box: tuple[slice, slice, slice]) -> Chart:
        """The chart of a part of the grid."""
        return replace(
            self,
            axes=tuple(axis[part] for axis, part in zip(self.axes, box, strict=True)),
            along=self.along[box[1:]],
            behind=self.behind[box[1:]],
            beside=self.beside[box],
            under_skin=self.under_skin[box[1:]],
        )


class Blob(NamedTuple):
    """An ellipsoid in the spine's coordinates: its middle and its radii, in mm."""

    along: float
    behind: float
    beside: float
    radius_along: float
    radius_behind: float
    radius_beside: float


@dataclass(frozen=True)
class Tumour:
    """An enhancing mass: the union of its blobs, with an uneven surface."""

    blobs: tuple[Blob, ...]
    rim: float
    """Thickness in mm of the enhancing rim around a necrotic core; infinite if it is solid."""
    inside_canal: bool
    brightness: float


class Rendering(NamedTuple):
    """A case before coil and noise."""

    signal: Float32[np.ndarray, "X Y Z"]
    tumour: Float32[np.ndarray, "X Y Z"]
    """Share of the voxel that is tumour."""
    marrow: Float32[np.ndarray, "X Y Z"]
    """Share of the voxel that is healthy marrow of a vertebral body."""


def draw_spine(rng: np.random.Generator, extent: Sequence[float]) -> Spine:
    """Draw a spine, a lumbar or a thoracic part of which lies in the field of view.

    Args:
        rng: consumed in a fixed order.
        extent: field of view in mm (right, anterior, superior), centred on the origin.
    """
    size = LEVELS * rng.uniform(0.92, 1.1) * rng.normal(1, 0.03, LEVELS.shape)
    foot = np.cumsum(size[:, 0] + size[:, 1]) - size[:, 0] - size[:, 1]
    foot -= foot[SACRAL]
    along = np.arange(-110, 500, 0.5)
    lean = np.interp(along, *LEAN.T) + rng.normal(0, 2)
    lean = np.deg2rad(gaussian_filter1d(lean, 30) * rng.uniform(0.7, 1.15))
    line = np.cumsum(np.stack([np.sin(lean), np.cos(lean)], axis=1), axis=0) * 0.5
    in_view = rng.uniform(60, 125) if rng.random() < 0.65 else rng.uniform(230, 360)
    line -= line[np.searchsorted(along, in_view)]
    line[:, 0] += rng.uniform(0.0, 0.12) * extent[1]
    depth = np.interp(along, [-110, 0, 100, 250, 400], [52, 72, 78, 64, 62]) * rng.uniform(0.9, 1.2)
    skin = line + depth[:, None] * np.stack([-np.cos(lean), np.sin(lean)], axis=1)
    bend = rng.uniform(0, 5) * np.sin(along * 2 * np.pi / 300 + rng.uniform(0, 2 * np.pi))
    return Spine(
        line=line,
        along=along,
        lean=lean,
        bend=bend + rng.uniform(-3, 3),
        skin=gaussian_filter1d(np.interp(line[:, 1], skin[:, 1], skin[:, 0]), 40),
        centre=foot + size[:, 0] / 2,
        size=size,
    )


def chart(spine: Spine, shape: Sequence[int], spacing: Sequence[float]) -> Chart:
    """Lay a grid (right, anterior, superior) centred on the origin over the spine."""
    axes = tuple((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True))
    plane = np.stack(np.meshgrid(axes[1], axes[2], indexing="ij"), axis=-1)
    _, nearest = KDTree(spine.line).query(plane)
    offset = plane - spine.line[nearest]
    sine, cosine = np.sin(spine.lean[nearest]), np.cos(spine.lean[nearest])
    skin = np.interp(axes[2], spine.line[:, 1], spine.skin)
    return Chart(
        axes=axes,
        along=(spine.along[nearest] + offset[..., 0] * sine + offset[..., 1] * cosine).astype(
            np.float32
        ),
        behind=(offset[..., 1] * sine - offset[..., 0] * cosine).astype(np.float32),
        beside=(axes[0][:, None, None] - spine.bend[nearest]).astype(np.float32),
        under_skin=(axes[1][:, None] - skin).astype(np.float32),
        edge=float(max(spacing[1:])),
        slab=float(spacing[0]),
    )


def cover(distance: np.ndarray, edge: float) -> np.ndarray:
    """Share of a voxel inside a surface: clip(1/2 − distance/edge, 0, 1), distance < 0 inside."""
    return np.clip(0.5 - distance / np.float32(edge), 0, 1)


def paint(image: np.ndarray, share: np.ndarray, value: float | np.ndarray) -> None:
    """Lay a tissue over the image, in place: image ← image + share·(value − image)."""
    image += share * (value - image)


def rounded_box(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in mm to a rectangle whose sides are at a = 0 and b = 0, corners rounded."""
    a, b = a + radius, b + radius
    return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - radius


def smooth_field(
    rng: np.random.Generator, axes: Sequence[np.ndarray], scale: Sequence[float] | float
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


def rician(
    rng: np.random.Generator, signal: Float32[np.ndarray, "*grid"], sigma: float
) -> Float32[np.ndarray, "*grid"]:
    """Magnitude of a complex signal with noise: |signal + σ(n₁ + i n₂)|; in air Rayleigh.

    Reference: Gudbjartsson and Patz, The Rician distribution of noisy MRI data, 1995.
    """
    noise = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(sigma)
    return np.hypot(signal + noise[0], noise[1])


def _level(spine: Spine, along: np.ndarray) -> np.ndarray:
    """Index of the level whose middle is nearest, counting each disc half to its neighbours."""
    return np.searchsorted((spine.centre[1:] + spine.centre[:-1]) / 2, along)


def _canal(spine: Spine, at: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """``behind`` of the middle of the spinal canal, and half its depth, both in mm."""
    half = np.interp(at, [-70, -45, 0, 180, 300], [0.5, 5, 7.5, 8, 7.0])
    middle = np.interp(at, spine.centre, spine.size[:, 2]) + 1.8 + half
    return np.asarray(middle, np.float32), np.asarray(half, np.float32)


def paint_soft_tissue(rng: np.random.Generator, image: np.ndarray, c: Chart, spine: Spine) -> None:
    """Muscle, fat and skin of the back; organs, great vessels and lung in front; air outside."""
    front = c.behind + np.interp(c.along, spine.centre, spine.size[:, 2]).astype(np.float32)
    streaks = smooth_field(rng, c.axes, (4, 3, 12))
    coarse, fine = smooth_field(rng, c.axes, (12, 9, 11)), smooth_field(rng, c.axes, (5, 3, 4))
    paint(image, cover(-c.under_skin, c.edge), 0.36 + 0.04 * streaks + 0.03 * fine)
    paint(image, np.clip(streaks - 1.1, 0, 0.8) * cover(8 - c.behind, 4), 0.8)

    # In front: fat between organs; the lung replaces both above the diaphragm.
    organs = np.clip(1.6 * coarse + 0.8 * fine + 0.7, 0, 1)
    paint(image, cover(front + 6, 6), 0.62 - 0.3 * organs + 0.05 * fine)
    lung = cover(235 + 0.3 * c.behind - c.along, 4) * cover(front + 24, 4)
    paint(image, lung, 0.05 + 0.1 * np.clip(fine - 0.5, 0, 1))
    for side in (-1, 1):  # aorta and vena cava: flow void, or bright with contrast agent
        radius = rng.uniform(6, 9)
        tube = np.hypot(front + radius + rng.uniform(2, 6), c.beside - side * 12) - radius
        tube = np.maximum(tube, rng.uniform(20, 45) - c.along)
        paint(image, cover(tube, c.edge), rng.choice([0.08, 0.3, 0.8]) + 0.03 * fine)

    septa = 1 - 0.1 * np.clip(np.abs(fine), 0, 2)
    paint(image, cover(c.under_skin - rng.uniform(8, 24), c.edge), septa)
    paint(image, cover(c.under_skin - 2, c.edge), 0.45)
    paint(image, cover(c.under_skin, c.edge), 0.0)


def paint_posterior(rng: np.random.Generator, image: np.ndarray, c: Chart, spine: Spine) -> None:
    """Spinous processes in the middle; pedicles, articular processes and foramina beside it."""
    middle, half = _canal(spine, c.along)
    marrow = rng.uniform(0.5, 0.68)
    beside = np.abs(c.beside)
    lumbar = np.clip((230 - c.along) / 60, 0, 1)

    back = c.behind - middle - half - 2.5
    between = cover(beside - 4, c.slab) * cover(rounded_box(-back, back - 27, 2), c.edge)
    paint(image, between, 0.5 + 0.1 * smooth_field(rng, c.axes[1:], (3, 5)))

    # Neural foramina: fat around the nerve root, closed above and below by the pedicles.
    k = _level(spine, c.along)
    height = spine.size[k, 0].astype(np.float32)
    up = c.along - spine.centre[k].astype(np.float32)
    lateral = cover(np.abs(beside - 14.5) - 5.5, c.slab)
    gap = c.behind - middle
    paint(image, lateral * cover(np.abs(gap) - half - 1, c.edge), 0.85)
    root = np.hypot(up - 0.02 * height + 4, gap + 1) - 2.8
    paint(image, lateral * cover(root, c.edge), 0.38)
    pedicle = rounded_box(np.abs(up - 0.22 * height) - 0.26 * height, np.abs(gap) - half - 5, 3)
    facet_up = c.along + 0.25 * (gap - half)
    kf = _level(spine, facet_up)
    local = np.abs(facet_up - spine.centre[kf].astype(np.float32))
    pitch = (spine.size[kf, 0] + spine.size[kf, 1]).astype(np.float32) / 2
    facet = rounded_box(local - pitch + 1.2, np.abs(gap - half - 5.5) - 5.5, 3)
    bone = np.minimum(pedicle, facet)
    paint(image, lateral * cover(bone, c.edge), 0.12)
    paint(image, lateral * cover(bone + 1.4, c.edge), marrow)

    # Spinous processes slant downwards, steeply in the chest, and start below the body's middle.
    slant = c.along + back * (0.25 + 0.75 * (1 - lumbar)) + 5
    ks = _level(spine, slant)
    length = np.where(ks < SACRAL, 9, 29 - 3 * (1 - lumbar)).astype(np.float32)
    thick = 7.5 * lumbar + 4.5 * (1 - lumbar) + 0.06 * back
    local = np.abs(slant - spine.centre[ks].astype(np.float32))
    process = rounded_box(local - thick, np.abs(back - length / 2) - length / 2, 4)
    flat = cover(beside - 3.8, c.slab)
    paint(image, flat * cover(process, c.edge), 0.12)
    paint(image, flat * cover(process + 1.4, c.edge), marrow)


def paint_canal(rng: np.random.Generator, image: np.ndarray, c: Chart, spine: Spine) -> np.ndarray:
    """Fluid, cord, nerve roots and epidural fat; returns the canal's share of each voxel."""
    middle, half = _canal(spine, c.along)
    k = _level(spine, c.along + spine.size[0, 0] / 2)
    to_disc = np.abs(c.along - (spine.centre - spine.size[:, 0] / 2 - 4)[k].astype(np.float32))
    gap = c.behind - middle
    fat = np.hypot(to_disc / 10, (gap - half - 0.5) / 4) - 1
    paint(image, cover(np.abs(c.beside) - 6, c.slab) * cover(4 * fat, c.edge), 0.92)

    canal = cover((np.hypot(gap / half, c.beside / 11) - 1) * half, c.edge)
    paint(image, canal, rng.uniform(0.13, 0.2))
    conus = rng.uniform(150, 175)
    thickness = np.clip((c.along - conus) / 25, 0, 1) ** 0.5
    cord = np.hypot(gap / 4.1, c.beside / 5.5) - thickness
    brightness = rng.uniform(0.42, 0.5)
    strands = np.clip(smooth_field(rng, c.axes[1:], (1.5, 20)), 0, 1)
    roots = cover(np.abs(gap - 0.3 * half) - 0.5 * half, c.edge) * (c.along < conus + 15)
    paint(image, canal * roots * strands * 0.6, brightness)
    paint(image, canal * cover(4 * cord, c.edge) * (thickness > 0), brightness)
    return canal


def paint_column(rng: np.random.Generator, image: np.ndarray, c: Chart, spine: Spine) -> np.ndarray:
    """Vertebral bodies and discs; returns the share of each voxel that is marrow of a body."""
    k = _level(spine, c.along)
    height, _, depth, width = np.moveaxis(spine.size[k].astype(np.float32), -1, 0)
    up = c.along - spine.centre[k].astype(np.float32)
    column_depth = np.interp(c.along, spine.centre, spine.size[:, 2]).astype(np.float32)
    column_width = np.interp(c.along, spine.centre, spine.size[:, 3]).astype(np.float32)
    oval = np.sqrt(np.clip(1.25 - (c.behind / column_depth) ** 2 * 0.75, 0.2, 1))
    wide = cover(np.abs(c.beside) - column_width * oval, c.slab)
    present = c.along > spine.centre[0] - spine.size[0, 0] / 2

    ring = np.abs(c.behind) - column_depth - 0.8
    paint(image, wide * (present * cover(ring, c.edge)), 0.14)
    disc = rng.uniform(0.28, 0.38) + rng.normal(0, 0.03, len(spine.centre) + 1)
    disc = disc[_level(spine, c.along + height / 2)].astype(np.float32)
    paint(image, wide * (present * cover(ring + 2.5, c.edge)), disc)

    # The body's sides and end plates are slightly hollow: a box whose half sizes depend on place.
    hollow_side = 0.09 * depth * np.clip(1 - (2 * up / height) ** 2, 0, 1)
    hollow_plate = 1.6 * np.clip(1 - (c.behind / depth) ** 2, 0, 1)
    body = rounded_box(
        np.abs(c.behind) - depth + hollow_side, np.abs(up) - height / 2 + hollow_plate, 2.5
    )
    wide = cover(np.abs(c.beside) - width * oval, c.slab)
    paint(image, wide * (present * cover(body, c.edge)), 0.1)
    marrow = wide * (present * cover(body + 1.3, c.edge))
    brightness = rng.uniform(0.42, 0.66) + rng.normal(0, 0.025, len(spine.centre))
    grain = smooth_field(rng, c.axes, (3, 2, 2)) * 0.035 + smooth_field(rng, c.axes, 7) * 0.035
    paint(image, marrow, brightness[k].astype(np.float32) + grain)

    # Not tumours, yet bright: basivertebral and epidural veins, and islands of fatty marrow.
    vein = np.hypot(up / 1.8, (c.behind - depth + 3.5) / 6) - 1
    paint(image, cover(np.abs(c.beside) - 5, c.slab) * cover(2 * vein, c.edge) * present, 0.9)
    for _ in range(rng.poisson(3)):
        j = rng.choice(_visible(spine, c))
        radius = rng.uniform(2.5, 5)
        place = rng.uniform(-0.65, 0.65, 3) * (spine.size[j, [0, 2, 3]] * (0.5, 1, 1))
        island = Blob(spine.centre[j] + place[0], place[1], place[2], radius, radius, radius)
        box = _around(c, [island])
        share = marrow[box] * cover(_distance(c.crop(box), [island]), c.edge)
        paint(image[box], share, rng.uniform(0.78, 0.95))
    return marrow


def _visible(spine: Spine, c: Chart) -> np.ndarray:
    """Levels whose body lies well inside the field of view; the one nearest its middle if none."""
    place = np.stack([np.interp(spine.centre, spine.along, part) for part in spine.line.T], axis=1)
    half = np.array([c.axes[1][-1], c.axes[2][-1]])
    inside = np.flatnonzero((np.abs(place) < half - 18).all(axis=1))
    return inside if inside.size else np.array([np.linalg.norm(place, axis=1).argmin()])


def _around(c: Chart, blobs: Sequence[Blob], margin: float = 8) -> tuple[slice, slice, slice]:
    """The part of the grid that holds the blobs and a margin in mm, which also allows for bend."""
    near_plane = np.zeros(c.along.shape, bool)
    near_across = np.zeros(c.axes[0].shape, bool)
    for blob in blobs:
        near_plane |= (np.abs(c.along - blob.along) < blob.radius_along + margin) & (
            np.abs(c.behind - blob.behind) < blob.radius_behind + margin
        )
        near_across |= np.abs(c.axes[0] - blob.beside) < blob.radius_beside + margin + c.slab
    extents = [np.flatnonzero(n) for n in (near_across, near_plane.any(1), near_plane.any(0))]
    return tuple(slice(e[0], e[-1] + 1) if e.size else slice(0, 0) for e in extents)  # pyright: ignore


def _distance(c: Chart, blobs: Sequence[Blob], shift: float = 0) -> np.ndarray:
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


def _lobes(rng: np.random.Generator, blob: Blob, count: int) -> list[Blob]:
    """Smaller blobs that bulge out of the given one."""
    middle, radii = np.array(blob[:3]), np.array(blob[3:])
    directions = rng.standard_normal((count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    scales = rng.uniform(0.45, 0.75, count)
    return [
        Blob(*(middle + 0.75 * radii * way), *(radii * scale))
        for way, scale in zip(directions, scales, strict=True)
    ]


def draw_tumour(rng: np.random.Generator, spine: Spine, c: Chart) -> Tumour:
    """Draw a mass in a vertebra, in the canal (elongated), or growing out of a vertebra."""
    visible = _visible(spine, c)
    site = rng.choice(["vertebra", "canal", "extending"], p=[0.4, 0.35, 0.25])
    brightness = rng.uniform(1.0, 1.35)
    if site == "canal":
        above_sacrum = visible[visible >= SACRAL]
        level = rng.choice(above_sacrum if above_sacrum.size else visible)
        at = float(spine.centre[level] + rng.uniform(-18, 18))
        middle, half = map(float, _canal(spine, at))
        place = (at, middle + half * rng.uniform(-0.2, 0.2), rng.uniform(-3, 3))
        radii = (rng.uniform(9, 20), half * rng.uniform(0.7, 1.0), rng.uniform(7, 11))
        blobs = [Blob(*place, *radii)]
        if rng.random() < 0.3:
            blobs += _lobes(rng, blobs[0], 3)
        return Tumour(tuple(blobs), np.inf, True, brightness)

    level = rng.choice(visible)
    height, _, depth, width = spine.size[level]
    radius = max(8, height * rng.uniform(0.34, 0.5))
    middle = np.array([spine.centre[level], 0, 0])
    place = rng.uniform(-1, 1, 3) * (0.25 * height, 0.45 * depth, 0.45 * width)
    blobs = []
    if site == "extending":  # out of the body to the back, to a side or to the front
        way = np.array([(0, 1, 0), (0, 0, 1), (0, 0, -1), (0, -1, 0)])[rng.integers(4)]
        place = 0.4 * place + 0.5 * way * (0, depth, width)
        away = middle + place + 1.2 * radius * way
        blobs.append(Blob(*away, *(radius * rng.uniform(0.7, 1.0, 3))))
    blobs.insert(0, Blob(*(middle + place), *(radius * rng.uniform(0.85, 1.15, 3))))
    look = rng.choice(["round", "lobulated", "ring"])
    if look == "lobulated":
        blobs += _lobes(rng, blobs[0], int(rng.integers(3, 6)))
    rim = rng.uniform(2.8, 4.5) if look == "ring" else np.inf
    return Tumour(tuple(blobs), rim, False, brightness)


def paint_tumour(
    rng: np.random.Generator, image: np.ndarray, c: Chart, tumour: Tumour, canal: np.ndarray
) -> np.ndarray:
    """Paint a mass into the image and return the share of each voxel that it fills."""
    share = np.zeros_like(image)
    box = _around(c, tumour.blobs)
    part = c.crop(box)
    uneven = smooth_field(rng, part.axes, 5)
    # A slice is thick against a tumour: average three places across it.
    shifts = (-part.slab / 3, 0, part.slab / 3)
    distances = [_distance(part, tumour.blobs, shift) + 0.8 * uneven for shift in shifts]
    share[box] = np.mean([cover(d, c.edge) for d in distances], axis=0)
    if tumour.inside_canal:
        share[box] *= canal[box]
    core = cover(distances[1] + tumour.rim, 1.5 * c.edge)
    texture = tumour.brightness * (1 + 0.06 * smooth_field(rng, part.axes, 2.5))
    paint(image[box], share[box], texture + core * (0.3 - texture))
    return share


def render(rng: np.random.Generator, spine: Spine, c: Chart) -> Rendering:
    """Paint the case from the background to the tumours: none, one or two of them."""
    image = np.zeros(c.beside.shape, np.float32)
    paint_soft_tissue(rng, image, c, spine)
    paint_posterior(rng, image, c, spine)
    canal = paint_canal(rng, image, c, spine)
    marrow = paint_column(rng, image, c, spine)
    tumour = np.zeros_like(image)
    for _ in range(rng.choice([0, 1, 2], p=[0.1, 0.6, 0.3])):
        share = paint_tumour(rng, image, c, draw_tumour(rng, spine, c), canal)
        np.maximum(tumour, share, out=tumour)
    return Rendering(image, tumour, marrow * (1 - tumour))


def coil(rng: np.random.Generator, c: Chart) -> Float32[np.ndarray, "X Y Z"]:
    """Sensitivity of a coil under the back, times a smooth field: the bias of the image."""
    reach = rng.uniform(110, 220)
    falloff = 1 / (1 + (np.maximum(c.under_skin, 0) / reach) ** 2)
    return 1.3 * falloff * np.exp(rng.uniform(0.05, 0.15) * smooth_field(rng, c.axes, 60))


def make_phantom(
    seed: int,
    index: int,
    shape: tuple[int, int, int] | None = None,
    spacing: tuple[float, float, float] | None = None,
) -> tuple[Float32[np.ndarray, "X Y Z"], UInt8[np.ndarray, "X Y Z"], Float[np.ndarray, "4 4"]]:
    """Make one case; the same (seed, index, shape, spacing) always gives the same one.

    Args:
        seed: of the data set.
        index: of the case.
        shape: stored grid; with ``spacing`` in mm, whose largest is taken as across the slices.
            Without both, about 18 sagittal slices of 160×160 voxels of 1.4 mm, 4 mm apart.

    Returns:
        image, labels (1: tumour) and affine (voxel to right, anterior, superior in mm), the axes
        stored in any order and direction, the patient lying up to some degrees askew.

    Raises:
        InputError: of ``shape`` and ``spacing`` only one is given.
    """
    if (shape is None) != (spacing is None):
        raise InputError(
            "make_phantom", "only one of shape and spacing", "both or neither", "give the other"
        )
    rng = np.random.default_rng((seed, index))
    if shape is None or spacing is None:
        orientation = rng.choice(ORIENTATIONS)
        pixel, across = rng.uniform(1.2, 1.6), rng.uniform(3.5, 5.0)
        frame_spacing = [across, pixel, pixel]
        frame_shape = rng.integers((16, 150, 150), (21, 171, 171)).tolist()
    else:
        orientation = rng.choice([o for o in ORIENTATIONS if _fits(o, spacing)])
        stored = np.argsort([AXIS_OF[letter] for letter in orientation])
        frame_spacing = [spacing[axis] for axis in stored]
        frame_shape = [shape[axis] for axis in stored]

    spine = draw_spine(rng, np.multiply(frame_shape, frame_spacing).tolist())
    c = chart(spine, frame_shape, frame_spacing)
    signal, tumour, _ = render(rng, spine, c)
    image = rician(rng, signal * coil(rng, c), rng.uniform(0.015, 0.045))
    image *= np.float32(rng.uniform(300, 1200))
    labels = (tumour >= 0.5).astype(np.uint8)
    affine = draw_pose(rng) @ stored_affine(orientation, frame_shape, frame_spacing)
    return store_as(image, orientation), store_as(labels, orientation), affine


def _fits(orientation: str, spacing: Sequence[float]) -> bool:
    """Whether the axis across the sagittal slices is one of the coarsest."""
    across = next(i for i, letter in enumerate(orientation) if AXIS_OF[letter] == 0)
    return spacing[across] == max(spacing)


def store_as(array: np.ndarray, orientation: str) -> np.ndarray:
    """Turn axes (right, anterior, superior) into the given order and directions."""
    turned = array.transpose([AXIS_OF[letter] for letter in orientation])
    flips = tuple(slice(None, None, -1 if letter in "LPI" else 1) for letter in orientation)
    return np.ascontiguousarray(turned[flips])


def stored_affine(
    orientation: str, shape: Sequence[int], spacing: Sequence[float]
) -> Float[np.ndarray, "4 4"]:
    """Stored voxel to mm, the middle of the grid at the origin.

    Args:
        orientation: of the stored axes.
        shape: of the grid (right, anterior, superior).
        spacing: the same in mm.
    """
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored, letter in enumerate(orientation):
        axis = AXIS_OF[letter]
        sign = -1 if letter in "LPI" else 1
        affine[axis, stored] = sign * spacing[axis]
        affine[axis, 3] = -sign * spacing[axis] * (shape[axis] - 1) / 2
    return affine


def draw_pose(rng: np.random.Generator) -> Float[np.ndarray, "4 4"]:
    """How the patient lies in the scanner: a few degrees and centimetres off."""
    pose = np.eye(4)
    angles = np.clip(rng.normal(0, 4, 3), -10, 10)
    pose[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    pose[:3, 3] = rng.uniform(-30, 30, 3)
    return pose


def write_dataset(
    out: Path,
    cases: int,
    seed: int,
    test_cases: int = 0,
    shape: tuple[int, int, int] | None = None,
    spacing: tuple[float, float, float] | None = None,
) -> None:
    """Write phantoms as an nnU-Net raw folder, the labels of the test cases in ``labelsTs``.

    The folder appears under its name only when it is complete.

    Args:
        out: new folder, or an empty one.
        cases: for training and validation; one in five, at least one, is for validation.
        seed: of the data set; the first ``cases`` cases do not depend on ``test_cases``.
        test_cases: held out.
        shape: as for ``make_phantom``.
        spacing: as for ``make_phantom``.

    Raises:
        InputError: the folder holds something, or there are too few cases.
    """
    if cases < 2:
        raise InputError("phantoms", f"{cases} cases", "at least 2", "raise the number of cases")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "not empty", "a new folder", "name another or remove it")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    names = [f"phantom{index:04d}" for index in range(cases + test_cases)]
    for index, name in enumerate(names):
        part = "Tr" if index < cases else "Ts"
        image, labels, affine = make_phantom(seed, index, shape, spacing)
        for folder, file, array in (
            ("images", f"{name}_0000.nii.gz", np.rint(image).astype(np.int16)),
            ("labels", f"{name}.nii.gz", labels),
        ):
            path = partial / f"{folder}{part}" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, array, affine)
    train = cases - max(1, cases // 5)
    split = {"train": names[:train], "val": names[train:cases]}
    (partial / "splits_final.json").write_text(json.dumps([split], indent=1) + "\n")
    write_json(
        partial / "dataset.json",
        {
            "name": "Synthetic spines with tumours, gadolinium-enhanced T1",
            "channel_names": {"0": "T1Gd"},
            "labels": {"background": 0, "tumour": 1},
            "numTraining": cases,
            "file_ending": ".nii.gz",
        },
    )
    partial.replace(out)
