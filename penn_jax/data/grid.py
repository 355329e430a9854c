"""From the grid of a file to the frames a network sees, and back: axis order, resampling, scaling.

Pure NumPy geometry, no files. Every array keeps its values bit for bit where the target spacing is
the native one; only axes whose spacing really changes are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Real, Shaped
from scipy.ndimage import gaussian_filter1d

SPACING_TOLERANCE = 0.01
"""Spacings closer than this share are taken as equal: no interpolation for a rounding error."""

PERCENTILES = (0.5, 99.5)
BODY_THRESHOLD = 0.05


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
    array = array.transpose(*grid.axes, *range(3, array.ndim))
    array = np.flip(array, tuple(k for k in range(3) if grid.flips[k]))
    if grid.dimensions == 3:
        array = array[np.newaxis]
    for axis, size in enumerate(grid.shape):
        array = _resample(array, axis, size, order)
    return np.ascontiguousarray(array)


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
    if grid.dimensions == 3:
        array = array[0]
    for axis, file_axis in enumerate(grid.axes):
        array = _resample(array, axis, grid.native_shape[file_axis], order)
    array = np.flip(array, tuple(k for k in range(3) if grid.flips[k]))
    inverse = [int(a) for a in np.argsort(grid.axes)]
    return np.ascontiguousarray(array.transpose(*inverse, *range(3, array.ndim)))


def _resample(array: np.ndarray, axis: int, size: int, order: int) -> np.ndarray:
    """Interpolate one axis to ``size`` voxels over the same field of view.

    Voxel i of the new axis sits at (i + 1/2) n / size - 1/2 of the old one (half-pixel centres, as
    PyTorch's ``align_corners=False``). Shrinking by a factor f > 1 with order 1 first smooths with
    a Gaussian of (f - 1) / 2 voxels, the usual guard against aliasing.
    """
    length = array.shape[axis]
    if length == size:
        return array
    index = np.arange(size)
    if order == 0:
        return array.take((2 * index + 1) * length // (2 * size), axis)
    array = array.astype(np.float32, copy=False)
    if size < length:
        array = gaussian_filter1d(array, (length / size - 1) / 2, axis, mode="nearest")
    position = np.clip((index + 0.5) * length / size - 0.5, 0, length - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, length - 1)
    weight = (position - low).astype(np.float32)
    weight = weight.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    below = array.take(low, axis)
    return below + weight * (array.take(high, axis) - below)


def normalise(frames: Real[np.ndarray, "F *spatial C"]) -> Float32[np.ndarray, "F *spatial C"]:
    """Scale the intensities of an image so that neither scanner units nor outliers matter.

    For each channel, with lo and hi its 0.5 and 99.5 percentiles::

        y = clip(x, lo, hi),   body = {y > lo + 0.05 (hi - lo)},   z = (y - mean_body y) / sd_body y

    The body leaves out the air, whose share depends on the field of view. An image a x + b, a > 0,
    gives the same result. Where hi = lo (nearly all voxels equal) the extremes take the place of
    the percentiles; where the body has no spread (a two-valued image) all voxels stand for it; a
    constant channel becomes 0.

    Args:
        frames: (F, *spatial, C), any real type.

    Returns:
        float32 of the same shape.
    """
    result = np.empty(frames.shape, np.float32)
    for channel in range(frames.shape[-1]):
        values = frames[..., channel].astype(np.float32)
        low, high = np.percentile(values, PERCENTILES)
        if low == high:
            low, high = values.min(), values.max()
        if low == high:
            result[..., channel] = 0
            continue
        values = np.clip(values, low, high)
        body = values[values > low + BODY_THRESHOLD * (high - low)]
        if body.std(dtype=np.float64) < 1e-6 * (high - low):
            body = values
        centre, deviation = body.mean(dtype=np.float64), body.std(dtype=np.float64)
        result[..., channel] = (values - centre) / deviation
    return result
