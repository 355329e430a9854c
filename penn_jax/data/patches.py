"""The patch extraction (PE) module.

Training: :func:`draw_patch` decides where a patch lies from a random generator alone and
:func:`cut_patch` cuts it with one interpolation. Prediction: :func:`patch_grid` covers an image,
:func:`extract` cuts it and :func:`restore` is the exact inverse, since every voxel belongs to
exactly one patch: the one in which it lies deepest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int32, Shaped, UInt8

from penn_jax.config import PatchConfig


class PatchDraw(NamedTuple):
    """Where a patch lies in a case.

    Voxel ``o`` of the patch shows the frame at ``centre + matrix @ (o - (size - 1) / 2)``.
    """

    frame: int
    centre: Float64[np.ndarray, " n"]
    matrix: Float64[np.ndarray, "n n"]

    def coordinates(self) -> Float64[np.ndarray, " m"]:
        """All that the patch depends on, as one vector, for logs and hashes."""
        return np.array([self.frame, *self.centre, *self.matrix.flat])

    @classmethod
    def at(cls, coordinates: Float64[np.ndarray, " m"], axes: int) -> PatchDraw:
        """The draw that has these coordinates."""
        end = 1 + axes
        return cls(int(coordinates[0]), coordinates[1:end], coordinates[end:].reshape(axes, axes))


@runtime_checkable
class FrameReader(Protocol):
    """Random access to the frames of a case; ``box`` is a slice for each axis, frames first."""

    def image(self, case: str, box: tuple[slice, ...]) -> Float32[np.ndarray, "F *box C"]: ...

    def labels(self, case: str, box: tuple[slice, ...]) -> UInt8[np.ndarray, "F *box"]: ...


def draw_patch(
    generator: np.random.Generator,
    frames_shape: Sequence[int],
    foreground: Callable[[], Mapping[int, Int32[np.ndarray, "n axes"]]],
    config: PatchConfig,
    spacing: Sequence[float] | None = None,
) -> PatchDraw:
    """Draw the place and the geometry of one patch.

    With probability ``foreground_fraction`` the patch is centred on a voxel of a foreground class,
    the classes of the case equally likely; otherwise it lies anywhere. Either way it is moved into
    the frame as far as it fits.

    Args:
        generator: the only source of randomness.
        frames_shape: (F, *spatial) of the case.
        foreground: voxels (frame, *position) of each class; called only where it is needed.
        config: patch size and strength of the geometric augmentation.
        spacing: of the spatial axes in mm: rotations keep lengths in mm, not in voxels.
    """
    frames, *spatial = frames_shape
    axes = len(spatial)
    matrix = _draw_matrix(generator, axes, config, spacing or (1.0,) * axes)
    frame = int(generator.integers(frames))
    size = np.array(config.size)
    room = np.subtract(spatial, size)
    last = np.maximum(room, 0)
    start = generator.random(axes) * (last + 1)
    if generator.random() < config.foreground_fraction:
        voxels = foreground()
        if voxels:
            of_class = voxels[sorted(voxels)[generator.integers(len(voxels))]]
            frame, *position = (int(i) for i in of_class[generator.integers(len(of_class))])
            start = np.minimum(np.maximum(np.array(position) - size // 2, 0), last)
    # A frame smaller than the patch lies in the patch's middle.
    start = np.floor(np.where(room < 0, room / 2, start))
    return PatchDraw(frame, start + (size - 1) / 2, matrix)


def _draw_matrix(
    generator: np.random.Generator, axes: int, config: PatchConfig, spacing: Sequence[float]
) -> Float64[np.ndarray, "n n"]:
    # Always the same number of draws, so that one option does not shift another's randomness.
    angle = math.radians(config.rotation_degrees) * generator.uniform(-1, 1)
    common = config.scaling ** generator.uniform(-1, 1)
    single = config.stretch ** generator.uniform(-1, 1, axes)
    mirrored = generator.random(axes) < (0.5 if config.flip else 0.0)
    rotation = np.eye(axes)
    rotation[-2:, -2:] = [
        [math.cos(angle), -math.sin(angle)],
        [math.sin(angle), math.cos(angle)],
    ]
    mm = np.array(spacing)
    # A magnification s shows a 1/s-wide part of the frame.
    return rotation * mm / mm[:, None] * (np.where(mirrored, -1.0, 1.0) / (common * single))


def cut_patch(
    reader: FrameReader,
    case: str,
    frames_shape: Sequence[int],
    draw: PatchDraw,
    config: PatchConfig,
    image: Float32[np.ndarray, "*size M"],
    label: UInt8[np.ndarray, "*size"],
    labelled: bool = True,
) -> None:
    """Cut a drawn patch straight out of the frames: one linear interpolation, labels nearest.

    Beyond the frame the image continues with its edge and the label is 255 (ignored). With
    ``config.neighbours`` n the slices from -n to n join as channels, slice by slice; beyond the
    first and last slice they repeat.

    Args:
        reader: gives boxes of the case's frames.
        case: name of the case.
        frames_shape: (F, *spatial).
        draw: from :func:`draw_patch`.
        config: patch size and neighbours.
        image: is written, M = C · (2 · neighbours + 1).
        label: is written.
        labelled: whether the case has labels; without, every label is 255.
    """
    from penn_jax.data.interpolate import sample  # Numba takes 0.2 s, and prediction none of it

    frames, *spatial = frames_shape
    middle = (np.array(config.size) - 1) / 2
    half = np.abs(draw.matrix) @ middle
    box, low = [], []
    for centre, reach, length in zip(draw.centre, half, spatial, strict=True):
        start = min(max(math.floor(centre - reach), 0), length - 1)
        stop = min(max(math.ceil(centre + reach) + 1, start + 1), length)
        box.append(slice(start, stop))
        low.append(start)
    origin = draw.centre - draw.matrix @ middle - low

    # Slice by slice the channels: the order in which prediction stacks them too.
    beside = range(draw.frame - config.neighbours, draw.frame + config.neighbours + 1)
    wanted = [min(max(frame, 0), frames - 1) for frame in beside]
    slab = reader.image(case, (slice(wanted[0], wanted[-1] + 1), *box))
    if len(slab) < len(wanted):
        slab = slab[np.subtract(wanted, wanted[0])]
    labels = None
    if labelled:
        labels = reader.labels(case, (slice(draw.frame, draw.frame + 1), *box))[0]
    sample(slab, labels, draw.matrix, origin, image, label)


@dataclass(frozen=True)
class PatchGrid:
    """Patches that cover an image, and which part of each is kept.

    Attributes:
        shape: the image's spatial shape.
        size: of every patch.
        starts: for each axis, where its patches start; all lie in the image, or start at 0 and
            reach past its end where the image is smaller than the patch.
        bounds: for each axis, the ends of the parts that are kept: patch i keeps
            ``bounds[i] .. bounds[i + 1]``.
    """

    shape: tuple[int, ...]
    size: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    bounds: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return math.prod(len(axis) for axis in self.starts)

    def positions(self) -> list[tuple[int, ...]]:
        """Number of each patch along each axis, in the order of :func:`extract`."""
        return list(product(*(range(len(axis)) for axis in self.starts)))


def patch_grid(
    shape: Sequence[int], size: Sequence[int], overlap: Sequence[int], multiple: int = 1
) -> PatchGrid:
    """Cover an image of ``shape`` with patches of ``size`` that share ``overlap`` voxels or more.

    Args:
        shape: spatial shape of the image.
        size: spatial shape of a patch.
        overlap: least number of voxels that neighbours share; less than the size.
        multiple: every start is a multiple of this (the network's total stride). Where it is not
            1, shape and size must be multiples of it.

    Raises:
        ValueError: an overlap that does not leave the patches a step, or sizes off the multiple.
    """
    starts, bounds = [], []
    for length, width, shared in zip(shape, size, overlap, strict=True):
        if not 0 <= shared <= width - multiple:
            raise ValueError(
                f"overlap {shared}: patches of {width} voxels that start at multiples of "
                f"{multiple} can share 0 to {width - multiple}"
            )
        if width % multiple or (length > width and length % multiple):
            raise ValueError(f"shape {length}, patch {width}: both must be multiples of {multiple}")
        step = (width - shared) // multiple * multiple
        last = max(length - width, 0)
        axis = (*range(0, last, step), last)
        # Neighbours meet in the middle of what they share.
        middles = ((right + left + width) // 2 for left, right in pairwise(axis))
        starts.append(axis)
        bounds.append((0, *middles, length))
    return PatchGrid(tuple(shape), tuple(size), tuple(starts), tuple(bounds))


def extract(
    image: Shaped[np.ndarray, "*spatial_and_more"], grid: PatchGrid, patches: slice = slice(None)
) -> Shaped[np.ndarray, "N *size_and_more"]:
    """Cut the patches of a grid out of an image; trailing axes (channels) come along.

    An image smaller than a patch continues with its edge.
    """
    return np.stack([_cut(image, grid, position) for position in grid.positions()[patches]])


def _cut(
    image: Shaped[np.ndarray, "*spatial_and_more"], grid: PatchGrid, position: tuple[int, ...]
) -> Shaped[np.ndarray, "*size_and_more"]:
    box = tuple(
        slice(starts[i], starts[i] + width)
        for starts, i, width in zip(grid.starts, position, grid.size, strict=True)
    )
    cut = image[box]
    pad = [(0, width - have) for width, have in zip(grid.size, cut.shape, strict=False)]
    return np.pad(cut, pad + [(0, 0)] * (cut.ndim - len(pad)), mode="edge")


def restore(
    patches: Shaped[np.ndarray, "N *size_and_more"], grid: PatchGrid
) -> Shaped[np.ndarray, "*spatial_and_more"]:
    """Put patches back: ``restore(extract(x, grid), grid) == x``, bit for bit."""
    image = np.empty((*grid.shape, *patches.shape[1 + len(grid.shape) :]), patches.dtype)
    for patch, position in zip(patches, grid.positions(), strict=True):
        place(image, patch, grid, position)
    return image


def place(
    image: Shaped[np.ndarray, "*spatial_and_more"],
    patch: Shaped[np.ndarray, "*size_and_more"],
    grid: PatchGrid,
    position: tuple[int, ...],
) -> None:
    """Write the part of one patch that the grid keeps into the image, in place."""
    target, source = [], []
    for starts, bounds, i in zip(grid.starts, grid.bounds, position, strict=True):
        target.append(slice(bounds[i], bounds[i + 1]))
        source.append(slice(bounds[i] - starts[i], bounds[i + 1] - starts[i]))
    image[tuple(target)] = patch[tuple(source)]
