"""The phantom's spine: where its levels lie, and the coordinates that follow its curve.

A voxel lies ``along`` the centre line (from the foot of L5 towards the head), ``behind`` it, and
``beside`` the middle plane; all in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import KDTree

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
LUMBAR = 5
"""Number of lumbar levels."""

# Forward lean in degrees of the centre line, going up, at these mm above the foot of L5:
# sacral kyphosis, lumbar lordosis, thoracic kyphosis.
LEAN = np.array(
    [
        *((-110, -10), (-65, 35), (-25, 46), (0, 38), (45, 18), (95, 2), (150, -12)),
        *((205, -16), (260, -10), (330, 4), (420, 20), (500, 28)),
    ]
)


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

    def half_depth(self, along: float | Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Half depth in mm of the vertebral column, interpolated between the levels."""
        return np.asarray(np.interp(along, self.centre, self.size[:, 2]))


@dataclass(frozen=True)
class Chart:
    """Where each voxel lies in the spine's own coordinates, in mm; float32."""

    axes: tuple[Float[np.ndarray, " X"], Float[np.ndarray, " Y"], Float[np.ndarray, " Z"]]
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
        right, anterior, superior = self.axes
        return replace(
            self,
            axes=(right[box[0]], anterior[box[1]], superior[box[2]]),
            along=self.along[box[1:]],
            behind=self.behind[box[1:]],
            beside=self.beside[box],
            under_skin=self.under_skin[box[1:]],
        )


def draw_spine(
    rng: np.random.Generator, extent: Float[np.ndarray, "3"], lumbar: bool = False
) -> Spine:
    """Draw a spine, a lumbar or a thoracic part of which lies in the field of view.

    Args:
        rng: consumed in a fixed order.
        extent: field of view in mm (right, anterior, superior), centred on the origin.
        lumbar: always the lumbar part.
    """
    size = LEVELS * rng.uniform(0.92, 1.1) * rng.normal(1, 0.03, LEVELS.shape)
    foot = np.cumsum(size[:, 0] + size[:, 1]) - size[:, 0] - size[:, 1]
    foot -= foot[SACRAL]
    along = np.arange(-110, 500, 0.5)
    lean = np.interp(along, *LEAN.T) + rng.normal(0, 2)
    lean = np.deg2rad(gaussian_filter1d(lean, 30) * rng.uniform(0.7, 1.15))
    line = np.cumsum(np.stack([np.sin(lean), np.cos(lean)], axis=1), axis=0) * 0.5
    in_view = rng.uniform(60, 125) if lumbar or rng.random() < 0.65 else rng.uniform(230, 360)
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


def lay_chart(spine: Spine, shape: Sequence[int], spacing: Sequence[float]) -> Chart:
    """Lay a grid (right, anterior, superior) centred on the origin over the spine.

    Args:
        spine: its geometry in mm.
        shape: of the grid.
        spacing: of the grid in mm.
    """
    right, anterior, superior = (
        (np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)
    )
    plane = np.stack(np.meshgrid(anterior, superior, indexing="ij"), axis=-1)
    _, nearest = KDTree(spine.line).query(plane)
    offset = plane - spine.line[nearest]
    sine, cosine = np.sin(spine.lean[nearest]), np.cos(spine.lean[nearest])
    along = spine.along[nearest] + offset[..., 0] * sine + offset[..., 1] * cosine
    behind = offset[..., 1] * sine - offset[..., 0] * cosine
    skin = np.interp(superior, spine.line[:, 1], spine.skin)
    return Chart(
        axes=(right, anterior, superior),
        along=along.astype(np.float32),
        behind=behind.astype(np.float32),
        beside=(right[:, None, None] - spine.bend[nearest]).astype(np.float32),
        under_skin=(anterior[:, None] - skin).astype(np.float32),
        edge=float(max(spacing[1:])),
        slab=float(spacing[0]),
    )


def nearest_level(
    spine: Spine, along: Float[np.ndarray, "Y Z"]
) -> tuple[Int[np.ndarray, "Y Z"], Float[np.ndarray, "Y Z"]]:
    """Index of the level whose middle is nearest, and mm above that middle.

    Each half of a disc counts to its neighbour.
    """
    level = np.searchsorted((spine.centre[1:] + spine.centre[:-1]) / 2, along)
    return level, along - spine.centre[level].astype(np.float32)


def canal_at(
    spine: Spine, along: float | Float[np.ndarray, "..."]
) -> tuple[Float32[np.ndarray, "..."], Float32[np.ndarray, "..."]]:
    """``behind`` of the middle of the spinal canal, and half its depth, both in mm."""
    half = np.interp(along, [-70, -45, 0, 180, 300], [0.5, 5, 7.5, 8, 7.0])
    middle = spine.half_depth(along) + 1.8 + half
    return np.asarray(middle, np.float32), np.asarray(half, np.float32)


def visible_levels(spine: Spine, c: Chart) -> Int[np.ndarray, " visible"]:
    """Levels whose body lies well inside the field of view; the one nearest its middle if none."""
    place = np.stack([np.interp(spine.centre, spine.along, part) for part in spine.line.T], axis=1)
    half = np.array([c.axes[1][-1], c.axes[2][-1]])
    inside = np.flatnonzero((np.abs(place) < half - 18).all(axis=1))
    return inside if inside.size else np.array([np.linalg.norm(place, axis=1).argmin()])
