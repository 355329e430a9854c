"""The phantom's tumours: enhancing masses of the vertebrae and of the spinal canal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from penn_jax.data.painting import Blob, around, cover, distance_to_blobs, paint, smooth_field
from penn_jax.data.spine import SACRAL, Chart, Spine, canal_at, visible_levels


@dataclass(frozen=True)
class Tumour:
    """An enhancing mass: the union of its blobs, with an uneven surface."""

    blobs: tuple[Blob, ...]
    rim: float
    """Thickness in mm of the enhancing rim around a necrotic core; infinite if it is solid."""
    inside_canal: bool
    brightness: float


def draw_tumour(rng: np.random.Generator, spine: Spine, c: Chart) -> Tumour:
    """Draw a mass in a vertebra, in the canal, or growing out of a vertebra."""
    site = rng.choice(["vertebra", "canal", "extending"], p=[0.4, 0.35, 0.25])
    brightness = rng.uniform(1.0, 1.35)
    visible = visible_levels(spine, c)
    if site == "canal":
        above_sacrum = visible[visible >= SACRAL]
        level = rng.choice(above_sacrum if above_sacrum.size else visible)
        blobs, rim = _in_canal(rng, spine, int(level)), np.inf
    else:
        level = rng.choice(visible)
        blobs, rim = _in_vertebra(rng, spine, int(level), extending=bool(site == "extending"))
    return Tumour(tuple(blobs), rim, bool(site == "canal"), brightness)


def _in_canal(rng: np.random.Generator, spine: Spine, level: int) -> list[Blob]:
    """An elongated mass in the spinal canal, now and then with lobes."""
    at = float(spine.centre[level] + rng.uniform(-18, 18))
    middle, half = map(float, canal_at(spine, at))
    place = (at, middle + half * rng.uniform(-0.2, 0.2), rng.uniform(-3, 3))
    radii = (rng.uniform(9, 20), half * rng.uniform(0.7, 1.0), rng.uniform(7, 11))
    mass = Blob(*place, *radii)
    return [mass, *_lobes(rng, mass, 3)] if rng.random() < 0.3 else [mass]


def _in_vertebra(
    rng: np.random.Generator, spine: Spine, level: int, extending: bool
) -> tuple[list[Blob], float]:
    """A mass of a vertebral body and the thickness of its rim: round, lobulated or a ring."""
    height, _, depth, width = spine.size[level]
    radius = max(8, height * rng.uniform(0.34, 0.5))
    middle = np.array([spine.centre[level], 0, 0])
    place = rng.uniform(-1, 1, 3) * (0.25 * height, 0.45 * depth, 0.45 * width)
    outside = []
    if extending:  # out of the body to the back, to a side or to the front
        way = np.array([(0, 1, 0), (0, 0, 1), (0, 0, -1), (0, -1, 0)])[rng.integers(4)]
        place = 0.4 * place + 0.5 * way * (0, depth, width)
        away = middle + place + 1.2 * radius * way
        outside = [Blob(*away, *(radius * rng.uniform(0.7, 1.0, 3)))]
    mass = Blob(*(middle + place), *(radius * rng.uniform(0.85, 1.15, 3)))
    look = rng.choice(["round", "lobulated", "ring"])
    lobes = _lobes(rng, mass, int(rng.integers(3, 6))) if look == "lobulated" else []
    rim = rng.uniform(2.8, 4.5) if look == "ring" else np.inf
    return [mass, *outside, *lobes], rim


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


def paint_tumour(
    rng: np.random.Generator,
    image: Float32[np.ndarray, "X Y Z"],
    c: Chart,
    tumour: Tumour,
    canal: Float32[np.ndarray, "X Y Z"],
) -> Float32[np.ndarray, "X Y Z"]:
    """Paint a mass into the image.

    Args:
        rng: draws the unevenness of its surface and its texture.
        image: painted in place.
        c: the chart of the whole grid.
        tumour: the mass.
        canal: share of each voxel that is spinal canal.

    Returns:
        The share of each voxel that the mass fills.
    """
    share = np.zeros_like(image)
    box = around(c, tumour.blobs)
    part = c.crop(box)
    uneven = smooth_field(rng, part.axes, 5.0)
    # A slice is thick against a tumour: average three places across it.
    shifts = (-part.slab / 3, 0.0, part.slab / 3)
    distances = [distance_to_blobs(part, tumour.blobs, shift) + 0.8 * uneven for shift in shifts]
    share[box] = np.mean([cover(d, c.edge) for d in distances], axis=0)
    if tumour.inside_canal:
        share[box] *= canal[box]
    core = cover(distances[1] + tumour.rim, 1.5 * c.edge)
    texture = tumour.brightness * (1 + 0.06 * smooth_field(rng, part.axes, 2.5))
    paint(image[box], share[box], texture + core * (0.3 - texture))
    return share
