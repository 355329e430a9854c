"""The phantom's healthy tissues, painted one over the other, from skin to vertebral bodies.

Intensities are those of a gadolinium-enhanced T1 scan, relative to subcutaneous fat, which is 1.
Shapes are functions of the spine's coordinates in mm (``Chart``).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from penn_jax.data.painting import (
    Blob,
    around,
    cover,
    distance_to_blobs,
    paint,
    rounded_box,
    smooth_field,
)
from penn_jax.data.spine import SACRAL, Chart, Spine, canal_at, nearest_level, visible_levels

Image = Float32[np.ndarray, "X Y Z"]

# Groups of tissues by their intensity, from and to: cortex and ligaments, fluid, muscle and discs,
# marrow, fat and what is brighter.
GROUPS = np.array([(0.09, 0.12), (0.15, 0.21), (0.28, 0.40), (0.45, 0.66), (0.78, 1.0)])


def paint_soft_tissue(rng: np.random.Generator, image: Image, c: Chart, spine: Spine) -> None:
    """Muscle, fat and skin of the back; organs, great vessels and lung in front; air outside."""
    front = c.behind + spine.half_depth(c.along).astype(np.float32)
    streaks = smooth_field(rng, c.axes, (4.0, 3.0, 12.0))
    coarse = smooth_field(rng, c.axes, (12.0, 9.0, 11.0))
    fine = smooth_field(rng, c.axes, (5.0, 3.0, 4.0))
    paint(image, cover(-c.under_skin, c.edge), 0.36 + 0.04 * streaks + 0.03 * fine)
    paint(image, np.clip(streaks - 1.1, 0, 0.8) * cover(8 - c.behind, 4.0), 0.8)

    # In front: fat between organs; the lung replaces both above the diaphragm.
    organs = np.clip(1.6 * coarse + 0.8 * fine + 0.7, 0, 1)
    paint(image, cover(front + 6, 6.0), 0.62 - 0.3 * organs + 0.05 * fine)
    lung = cover(235 + 0.3 * c.behind - c.along, 4.0) * cover(front + 24, 4.0)
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


def paint_posterior(rng: np.random.Generator, image: Image, c: Chart, spine: Spine) -> None:
    """What lies behind the canal and beside it: arches, processes, foramina, fat between them."""
    middle, half = canal_at(spine, c.along)
    marrow = rng.uniform(0.5, 0.68)
    back = c.behind - middle - half - 2.5
    between = cover(np.abs(c.beside) - 4, c.slab)
    between = between * cover(rounded_box(-back, back - 27, 2.0), c.edge)
    paint(image, between, 0.5 + 0.1 * smooth_field(rng, c.axes[1:], (3.0, 5.0)))
    _paint_foramina(image, c, spine, marrow)
    _paint_spinous_processes(image, c, spine, marrow)


def _paint_foramina(image: Image, c: Chart, spine: Spine, marrow: float) -> None:
    """Fat around the nerve roots, closed above and below by pedicles and articular processes."""
    middle, half = canal_at(spine, c.along)
    gap = c.behind - middle
    k, up = nearest_level(spine, c.along)
    height = spine.size[k, 0].astype(np.float32)
    lateral = cover(np.abs(np.abs(c.beside) - 14.5) - 5.5, c.slab)
    paint(image, lateral * cover(np.abs(gap) - half - 1, c.edge), 0.85)
    root = np.hypot(up - 0.02 * height + 4, gap + 1) - 2.8
    paint(image, lateral * cover(root, c.edge), 0.38)

    pedicle = rounded_box(np.abs(up - 0.22 * height) - 0.26 * height, np.abs(gap) - half - 5, 3.0)
    k, up = nearest_level(spine, c.along + 0.25 * (gap - half))
    pitch = (spine.size[k, 0] + spine.size[k, 1]).astype(np.float32) / 2
    facet = rounded_box(np.abs(up) - pitch + 1.2, np.abs(gap - half - 5.5) - 5.5, 3.0)
    bone = np.minimum(pedicle, facet)
    paint(image, lateral * cover(bone, c.edge), 0.12)
    paint(image, lateral * cover(bone + 1.4, c.edge), marrow)


def _paint_spinous_processes(image: Image, c: Chart, spine: Spine, marrow: float) -> None:
    """They slant downwards, steeply in the chest, and start below the body's middle."""
    middle, half = canal_at(spine, c.along)
    back = c.behind - middle - half - 2.5
    lumbar = np.clip((230 - c.along) / 60, 0, 1)
    k, up = nearest_level(spine, c.along + back * (0.25 + 0.75 * (1 - lumbar)) + 5)
    length = np.where(k < SACRAL, 9, 29 - 3 * (1 - lumbar)).astype(np.float32)
    thick = 7.5 * lumbar + 4.5 * (1 - lumbar) + 0.06 * back
    process = rounded_box(np.abs(up) - thick, np.abs(back - length / 2) - length / 2, 4.0)
    flat = cover(np.abs(c.beside) - 3.8, c.slab)
    paint(image, flat * cover(process, c.edge), 0.12)
    paint(image, flat * cover(process + 1.4, c.edge), marrow)


def paint_canal(rng: np.random.Generator, image: Image, c: Chart, spine: Spine) -> Image:
    """Fluid, cord, nerve roots and epidural fat; returns the canal's share of each voxel."""
    middle, half = canal_at(spine, c.along)
    k, _ = nearest_level(spine, c.along + spine.size[0, 0] / 2)
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
    strands = np.clip(smooth_field(rng, c.axes[1:], (1.5, 20.0)), 0, 1)
    roots = cover(np.abs(gap - 0.3 * half) - 0.5 * half, c.edge) * (c.along < conus + 15)
    paint(image, canal * roots * strands * 0.6, brightness)
    paint(image, canal * cover(4 * cord, c.edge) * (thickness > 0), brightness)
    return canal


def paint_column(
    rng: np.random.Generator, image: Image, c: Chart, spine: Spine
) -> tuple[Image, Image]:
    """Vertebral bodies and discs; returns the shares of each voxel: a body's marrow, and a body."""
    present = c.along > spine.centre[0] - spine.size[0, 0] / 2
    # Seen from above the column is oval: narrower towards the front and the back.
    column_depth = spine.half_depth(c.along).astype(np.float32)
    oval = np.sqrt(np.clip(1.25 - (c.behind / column_depth) ** 2 * 0.75, 0.2, 1))
    k, up = nearest_level(spine, c.along)
    height, _, depth, width = np.moveaxis(spine.size[k].astype(np.float32), -1, 0)

    # Discs, in their ligaments: painted along the whole column, then covered by the bodies.
    column_width = np.interp(c.along, spine.centre, spine.size[:, 3]).astype(np.float32)
    wide = cover(np.abs(c.beside) - column_width * oval, c.slab)
    ring = np.abs(c.behind) - column_depth - 0.8
    paint(image, wide * (present * cover(ring, c.edge)), 0.14)
    disc = rng.uniform(0.28, 0.38) + rng.normal(0, 0.03, len(spine.centre) + 1)
    below, _ = nearest_level(spine, c.along + height / 2)
    paint(image, wide * (present * cover(ring + 2.5, c.edge)), disc[below].astype(np.float32))

    # The body's sides and end plates are slightly hollow: a box whose half sizes depend on place.
    hollow_side = 0.09 * depth * np.clip(1 - (2 * up / height) ** 2, 0, 1)
    hollow_plate = 1.6 * np.clip(1 - (c.behind / depth) ** 2, 0, 1)
    body = rounded_box(
        np.abs(c.behind) - depth + hollow_side, np.abs(up) - height / 2 + hollow_plate, 2.5
    )
    wide = cover(np.abs(c.beside) - width * oval, c.slab)
    whole = wide * (present * cover(body, c.edge))
    paint(image, whole, 0.1)
    marrow = wide * (present * cover(body + 1.3, c.edge))
    brightness = rng.uniform(0.42, 0.66) + rng.normal(0, 0.025, len(spine.centre))
    grain = smooth_field(rng, c.axes, (3.0, 2.0, 2.0)) * 0.035
    grain = grain + smooth_field(rng, c.axes, 7.0) * 0.035
    paint(image, marrow, brightness[k].astype(np.float32) + grain)

    # Basivertebral and epidural veins: not tumours, yet bright.
    vein = np.hypot(up / 1.8, (c.behind - depth + 3.5) / 6) - 1
    paint(image, cover(np.abs(c.beside) - 5, c.slab) * cover(2 * vein, c.edge) * present, 0.9)
    _paint_fatty_islands(rng, image, c, spine, marrow)
    return marrow, whole


def _paint_fatty_islands(
    rng: np.random.Generator, image: Image, c: Chart, spine: Spine, marrow: Image
) -> None:
    """Round islands of fatty marrow in the bodies: not tumours, yet bright."""
    for _ in range(rng.poisson(3)):
        level = rng.choice(visible_levels(spine, c))
        radius = rng.uniform(2.5, 5)
        place = rng.uniform(-0.65, 0.65, 3) * (spine.size[level, [0, 2, 3]] * (0.5, 1, 1))
        island = Blob(spine.centre[level] + place[0], place[1], place[2], radius, radius, radius)
        box = around(c, [island])
        share = marrow[box] * cover(distance_to_blobs(c.crop(box), [island]), c.edge)
        paint(image[box], share, rng.uniform(0.78, 0.95))


def redraw_contrast(
    rng: np.random.Generator, image: Float32[np.ndarray, "*grid"]
) -> Float32[np.ndarray, "*grid"]:
    """Give each group of tissues another intensity, as another sequence of pulses would.

    A network that learns from such images must look for shapes, and knows them in scans of a
    contrast that it has not seen.

    Reference: Billot et al., "SynthSeg: segmentation of brain MRI scans of any contrast and
    resolution without retraining", 2023.
    """
    drawn = rng.uniform(0.05, 1.0, len(GROUPS))[:, None] + np.array([-0.03, 0.03])
    return np.interp(image, [0, *GROUPS.ravel()], [0, *drawn.ravel()]).astype(np.float32)
