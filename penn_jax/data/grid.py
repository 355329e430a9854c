"""From the grid of a file to the frames a network sees, and back: axis order, resampling, scaling.

Pure NumPy geometry, no files. Every array keeps its values bit for bit where the target spacing is
the native one; only axes whose spacing really changes are interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Real, Shaped
from scipy.ndimage import gaussian_filter1d

SPACING_TOLERANCE = 0.01
"""Spacings closer than this share are taken as equal: no interpolation for a rounding error."""

PERCENTILES = (0.5, 99.5)
BODY_THRESHOLD = 0.05
LARGEST_INTENSITY, LEAST_CONTRAST = 1e30, 1e-30
"""Between these, sums, differences and deviations neither overflow nor vanish in float32."""

_PIECE = 1 << 16
"""Voxels normalised at once."""
_CHUNK = 1 << 22
"""Values interpolated at once: what that takes besides its result stays small."""


@dataclass(frozen=True)
class FrameGrid:
    """How the voxels of one file are laid out as frames."""

    native_shape: tuple[int, int, int]
    """Shape in the file."""
    axes: tuple[int, int, int]
    """File axis of each oriented axis: slice axis first in 2-D, canonical R, A, S order in 3-D."""
    flips: tuple[bool, bool, bool]
    """Whether each oriented axis runs against its file axis."""
    shape: tuple[int, ...]
    """Frames and their spatial size: (F, *spatial)."""
    spacing: tuple[float, ...]
    """Distance of the frames' voxels along each spatial axis, mm."""

    @property
    def dimensions(self) -> int:
        """Number of spatial axes of a frame: 2 or 3."""
        return len(self.spacing)

    @property
    def native_sizes(self) -> tuple[int, ...]:
        """Voxels of the file along each spatial axis of a frame."""
        return tuple(self.native_shape[axis] for axis in self.axes[-self.dimensions :])

    @property
    def margins(self) -> tuple[int, ...]:
        """Voxels of a frame beyond a block on which the file's voxels within it depend."""
        return tuple(
            0 if frame == native else 1 + _smoothing(frame, native)[1]
            for frame, native in zip(self.shape[1:], self.native_sizes, strict=True)
        )


def plan_frames(
    shape: Sequence[int],
    affine: Float[np.ndarray, "4 4"],
    orientation: Real[np.ndarray, "3 2"],
    dimensions: int,
    spacing: Sequence[float] | None,
) -> FrameGrid:
    """Choose the slice axis and the size of the frames of a file.

    The slice axis of the 2-D form is a singleton axis if there is one, otherwise the coarsest, the
    last canonical axis among equals. An axis of n voxels of s mm becomes round(n s / t) voxels for
    a target of t mm; the field of view is kept, so that the true spacing is n s / round(n s / t).

    Args:
        shape: (X, Y, Z) of the file.
        affine: (4, 4), voxel to mm.
        orientation: (3, 2), canonical axis and direction of each file axis, as nibabel gives it.
        dimensions: spatial axes of a frame, 2 or 3.
        spacing: target of the frames' spatial axes in mm, None for the native one.

    Returns:
        The plan that ``to_frames`` and ``from_frames`` follow.
    """
    distances = np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))
    file_axis = [int(a) for a in np.argsort(orientation[:, 0])]
    order = [0, 1, 2]
    if dimensions == 2:
        singleton = [c for c in order if shape[file_axis[c]] == 1] or order
        coarsest = max(distances[file_axis[c]] for c in singleton) * (1 - SPACING_TOLERANCE)
        chosen = max(c for c in singleton if distances[file_axis[c]] >= coarsest)
        order = [chosen] + [c for c in order if c != chosen]
    axes = [file_axis[c] for c in order]

    spatial = axes[-dimensions:]
    native = [float(distances[a]) for a in spatial]
    target = native if spacing is None else [float(s) for s in spacing]
    if len(target) != dimensions:
        raise ValueError(f"spacing {tuple(target)} for frames of {dimensions} axes")
    sizes = [
        shape[a] if abs(s / t - 1) <= SPACING_TOLERANCE else max(1, round(shape[a] * s / t))
        for a, s, t in zip(spatial, native, target, strict=True)
    ]
    frames = shape[axes[0]] if dimensions == 2 else 1
    return FrameGrid(
        native_shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        axes=(axes[0], axes[1], axes[2]),
        flips=tuple(bool(orientation[a, 1] < 0) for a in axes),  # type: ignore[arg-type]
        shape=(int(frames), *map(int, sizes)),
        spacing=tuple(s * shape[a] / n for a, s, n in zip(spatial, native, sizes, strict=True)),
    )


def to_frames(
    array: Shaped[np.ndarray, "X Y Z *C"], grid: FrameGrid, order: int
) -> Shaped[np.ndarray, "F *shape"]:
    """Orient, slice and resample an array of the file's grid.

    Args:
        array: (X, Y, Z) or (X, Y, Z, C).
        grid: the file's plan.
        order: 0 nearest neighbour (labels, keeps the type), 1 linear (float32).

    Returns:
        (F, *spatial) or (F, *spatial, C), contiguous.

    Raises:
        ValueError: the array is not on the plan's grid.
    """
    if array.shape[:3] != grid.native_shape:
        raise ValueError(f"array of shape {array.shape} on a grid of {grid.native_shape}")
    array = oriented(array, grid)
    for axis, size in enumerate(grid.shape):
        array = _resample(array, axis, size, order)
    return np.ascontiguousarray(array)


def oriented(
    array: Shaped[np.ndarray, "X Y Z *C"], grid: FrameGrid
) -> Shaped[np.ndarray, "F *native"]:
    """A view of an array of the file's grid, as frames in which nothing is resampled.

    What is written to the view is written to the array.
    """
    array = array.transpose(*grid.axes, *range(3, array.ndim))
    array = np.flip(array, tuple(k for k in range(3) if grid.flips[k]))
    return array[np.newaxis] if grid.dimensions == 3 else array


def from_frames(
    array: Shaped[np.ndarray, "F *shape"], grid: FrameGrid, order: int
) -> Shaped[np.ndarray, "X Y Z *C"]:
    """Bring frames back to the exact grid of the file: the inverse of ``to_frames``.

    Args:
        array: (F, *spatial) or (F, *spatial, C).
        grid: the file's plan.
        order: 0 nearest neighbour (labels, keeps the type), 1 linear (probabilities, float32).

    Returns:
        (X, Y, Z) or (X, Y, Z, C), contiguous.

    Raises:
        ValueError: the array does not hold the plan's frames.
    """
    if array.shape[: len(grid.shape)] != grid.shape:
        raise ValueError(f"array of shape {array.shape} for frames of {grid.shape}")
    for axis, size in enumerate(grid.native_sizes, start=1):
        array = _resample(array, axis, size, order)
    result = np.empty((*grid.native_shape, *array.shape[len(grid.shape) :]), array.dtype)
    oriented(result, grid)[...] = array
    return result


def block_from_frames(
    values: Shaped[np.ndarray, "*block K"],
    reach: Sequence[slice],
    box: Sequence[slice],
    grid: FrameGrid,
) -> tuple[Shaped[np.ndarray, "*native K"], tuple[slice, ...]]:
    """Bring a part of one frame back to the file's sampling: what ``from_frames`` gives there.

    The boxes that make up a frame give each voxel of the file exactly once.

    Args:
        values: scores of the frame's voxels in ``reach``, linearly interpolated.
        reach: ``box`` and ``grid.margins`` more on each side, as far as the frame goes.
        box: the part of the frame, a slice an axis.
        grid: the file's plan.

    Returns:
        The values of the file's voxels that lie in the box, and where these are along the spatial
        axes of ``oriented``.
    """
    where = []
    for axis, size in enumerate(grid.native_sizes):
        length, part, have = grid.shape[1 + axis], box[axis], reach[axis]
        wanted = part
        if length != size:
            low = _position(length, size)[0]
            first, stop = np.searchsorted(low, (part.start, part.stop))
            wanted = slice(int(first), int(stop))
            values = _interpolate(values, axis, length, size, have.start, wanted)
        where.append(wanted)
    return values, tuple(where)


def _resample(array: np.ndarray, axis: int, size: int, order: int) -> np.ndarray:
    """Interpolate one axis to ``size`` voxels over the same field of view.

    Voxel i of the new axis sits at (i + 1/2) n / size - 1/2 of the old one (half-pixel centres, as
    PyTorch's ``align_corners=False``). Shrinking by a factor f > 1 with order 1 first smooths with
    a Gaussian of (f - 1) / 2 voxels, the usual guard against aliasing.
    """
    length = array.shape[axis]
    if length == size:
        return array
    if order == 0:
        return array.take((2 * np.arange(size) + 1) * length // (2 * size), axis)
    shape = [size if a == axis else n for a, n in enumerate(array.shape)]
    result = np.empty(shape, np.float32)
    low, high, _ = _position(length, size)
    radius = _smoothing(length, size)[1]
    step = max(1, _CHUNK // (result.size // size))
    for first in range(0, size, step):
        wanted = slice(first, min(first + step, size))
        start = max(0, int(low[wanted.start]) - radius)
        stop = min(length, int(high[wanted.stop - 1]) + radius + 1)
        before = (slice(None),) * axis
        part = _interpolate(array[(*before, slice(start, stop))], axis, length, size, start, wanted)
        result[(*before, wanted)] = part
    return result


def _interpolate(
    part: np.ndarray, axis: int, length: int, size: int, start: int, wanted: slice
) -> np.ndarray:
    """Voxels ``wanted`` of an axis resampled from ``length`` to ``size``.

    ``part`` holds the old axis from ``start`` on, as far as the wanted voxels depend on it.
    """
    part = part.astype(np.float32, copy=False)
    deviation, radius = _smoothing(length, size)
    if radius:
        part = gaussian_filter1d(part, deviation, axis, mode="nearest", radius=radius)
    low, high, weight = (values[wanted] for values in _position(length, size))
    weight = weight.reshape([-1 if a == axis else 1 for a in range(part.ndim)])
    below = part.take(low - start, axis)
    return below + weight * (part.take(high - start, axis) - below)


def _position(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each voxel of the new axis: the old voxels on either side, the weight of the upper."""
    position = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    low = np.floor(position).astype(int)
    return low, np.minimum(low + 1, length - 1), (position - low).astype(np.float32)


def _smoothing(length: int, size: int) -> tuple[float, int]:
    """Deviation and radius, in old voxels, of the Gaussian before an axis is resampled."""
    deviation = max(0.0, (length / size - 1) / 2)
    return deviation, int(4 * deviation + 0.5) if deviation else 0  # SciPy's truncation


def normalise(frames: Real[np.ndarray, "F *spatial C"]) -> Float32[np.ndarray, "F *spatial C"]:
    """Scale the intensities of an image so that neither scanner units nor outliers matter.

    For each channel, with lo and hi its 0.5 and 99.5 percentiles::

        y = clip(x, lo, hi),   body = {y > lo + 0.05 (hi - lo)},   z = (y - mean_body y) / sd_body y

    The body leaves out the air, whose share depends on the field of view. An image a x + b, a > 0,
    gives the same result. Where hi ≈ lo (nearly all voxels equal) the extremes take the place of
    the percentiles; where the body has no spread (a two-valued image) all voxels stand for it; a
    constant channel becomes 0.

    Args:
        frames: (F, *spatial, C), any real type, none beyond ± ``LARGEST_INTENSITY``.

    Returns:
        float32 of the same shape.
    """
    result = np.empty(frames.shape, np.float32)
    for channel in range(frames.shape[-1]):
        # In pieces, so that a large scan is not held several times over.
        values = frames.reshape(-1, frames.shape[-1])[:, channel]
        scaled = result.reshape(-1, frames.shape[-1])[:, channel]
        ends = np.percentile(values.astype(np.float32, copy=False), PERCENTILES)
        low, high = np.float32(ends[0]), np.float32(ends[1])
        if high - low < LEAST_CONTRAST:
            low, high = np.float32(values.min()), np.float32(values.max())
        if high - low < LEAST_CONTRAST:
            scaled[...] = 0
            continue
        body = low + np.float32(BODY_THRESHOLD) * (high - low)
        centre, deviation = _statistics(values, low, high, body)
        if deviation < 1e-6 * (high - low):
            centre, deviation = _statistics(values, low, high, low - (high - low))
        for piece in _pieces(values):
            clipped = np.clip(values[piece].astype(np.float32, copy=False), low, high)
            scaled[piece] = (clipped - centre) / deviation
    return result


def _statistics(
    values: Real[np.ndarray, " voxels"], low: Any, high: Any, above: Any
) -> tuple[np.float32, np.float32]:
    """Mean and standard deviation of the clipped values above a threshold.

    Moments about ``low`` in float64, so that one pass is enough.
    """
    count, total, squares = 0, 0.0, 0.0
    for piece in _pieces(values):
        clipped = np.clip(values[piece].astype(np.float32, copy=False), low, high)
        inside = clipped > above
        height = np.where(inside, clipped - low, 0).astype(np.float64)
        count += int(np.count_nonzero(inside))
        total += float(height.sum())
        squares += float(np.square(height).sum())
    mean = total / count
    variance = max(0.0, squares / count - mean**2)
    return np.float32(low + mean), np.float32(np.sqrt(variance))


def _pieces(values: Real[np.ndarray, " voxels"]) -> Iterator[slice]:
    for first in range(0, len(values), _PIECE):
        yield slice(first, first + _PIECE)
