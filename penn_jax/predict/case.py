"""One scan: files in, a mask (and class probabilities, if asked) on the scan's own grid out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Shaped, UInt8

from penn_jax.data.grid import FrameGrid, block_from_frames, normalise, oriented, to_frames
from penn_jax.data.volume import Volume, frame_grid, read_image
from penn_jax.predict.certainty import entropy, overlap_sums
from penn_jax.predict.dense import Block, Forward, Tiling, predict_blocks

_SLAB = 1 << 22
"""Values brought to the scan's sampling at once: what that takes must not grow with the scan."""
_SAMPLE = 1 << 15
"""Voxels that describe the intensities of a scan; a larger one is thinned alike along its axes."""


@dataclass(frozen=True, eq=False)
class Case:
    """A scan ready for the network."""

    scan: Volume
    """Where its voxels lie; the array has the shape but holds no data."""
    grid: FrameGrid
    frames: Float32[np.ndarray, "F *spatial C"]
    intensity: Mapping[str, list[float]]
    """``minimum``, ``median`` and ``percentile_99`` of each channel, in the file's own unit."""


def read_case(paths: Sequence[Path], dimensions: int, spacing: Sequence[float] | None) -> Case:
    """Read one scan by the steps that ``penn prepare`` took: orient, resample, normalise.

    Args:
        paths: one file for each channel.
        dimensions: spatial axes of the network's frames.
        spacing: of the frames in mm; None for the scan's own.

    Raises:
        InputError: a file cannot be read or used.
    """
    scan = read_image(paths)
    grid = frame_grid(scan, dimensions, spacing)
    frames = to_frames(scan.array, grid, order=1)
    intensity = _intensity(scan.array)
    # Only the frames stay: a large scan is held once.
    scan = replace(scan, array=np.broadcast_to(np.float32(0), scan.array.shape))
    return Case(scan, grid, normalise(frames), intensity)


def _intensity(array: Float32[np.ndarray, "X Y Z C"]) -> dict[str, list[float]]:
    voxels = math.prod(array.shape[:3])
    step = max(1, math.ceil((voxels / _SAMPLE) ** (1 / 3)))
    sample = array[::step, ::step, ::step].reshape(-1, array.shape[-1])
    values = np.percentile(sample, (0, 50, 99), axis=0).tolist()
    return dict(zip(("minimum", "median", "percentile_99"), values, strict=True))


def predict_case(
    case: Case,
    forward: Forward,
    tiling: Tiling,
    probabilities: Float32[np.ndarray, "X Y Z K"] | None = None,
    uncertainty: Float32[np.ndarray, "X Y Z"] | None = None,
) -> tuple[UInt8[np.ndarray, "X Y Z"], Float64[np.ndarray, "3 foreground"]]:
    """The most likely class of each voxel of the scan's own grid, and how sure the network is.

    Block by block the probabilities are brought back to the scan's sampling and compared there;
    they are never held for the whole scan.

    Args:
        case: from :func:`read_case`.
        forward: from tiles to class probabilities (B, *tile, K), float32.
        tiling: what dense prediction must know of the network.
        probabilities: takes the probabilities of every voxel, where given.
        uncertainty: takes their entropy, where given.

    Returns:
        Classes 0 … K - 1, the first among equally likely ones; and the sums of
        :func:`~penn_jax.predict.certainty.overlap_sums` over the scan.

    Raises:
        InputError: the memory budget is too small for one tile.
    """
    mask = np.empty(case.grid.native_shape, np.uint8)
    mask_frames = oriented(mask, case.grid)
    kept = None if probabilities is None else oriented(probabilities, case.grid)
    unsure = None if uncertainty is None else oriented(uncertainty, case.grid)
    sums: Any = 0.0
    for whole in predict_blocks(forward, case.frames, tiling, case.grid.margins):
        for block in _slabs(whole, case.grid):
            values, where = block_from_frames(block.values, block.reach, block.box, case.grid)
            mask_frames[(block.frame, *where)] = chosen = most_likely(values)
            sums = sums + overlap_sums(values, chosen)
            if kept is not None:
                kept[(block.frame, *where)] = values
            if unsure is not None:
                unsure[(block.frame, *where)] = entropy(values)
    return mask, sums


def _slabs(block: Block, grid: FrameGrid) -> Iterator[Block]:
    """Pieces of a block that stay small when they are brought to the file's sampling."""
    growth = math.prod(
        max(1.0, native / own)
        for native, own in zip(grid.native_sizes, grid.shape[1:], strict=True)
    )
    box, reach, margin = block.box[0], block.reach[0], grid.margins[0]
    row = math.prod(part.stop - part.start for part in block.box[1:]) * block.values.shape[-1]
    step = max(1, int(_SLAB // (row * growth)))
    for first in range(box.start, box.stop, step):
        part = slice(first, min(first + step, box.stop))
        have = slice(max(reach.start, part.start - margin), min(reach.stop, part.stop + margin))
        yield Block(
            block.frame,
            (part, *block.box[1:]),
            (have, *block.reach[1:]),
            block.values[have.start - reach.start : have.stop - reach.start],
        )


def most_likely(scores: Shaped[np.ndarray, "*voxels K"]) -> UInt8[np.ndarray, "*voxels"]:
    """The class of the highest score, the first among equals: ``argmax`` over the last axis.

    Class by class: NumPy's argmax along a short last axis takes ten times as long.
    """
    best = scores[..., 0].copy()
    classes = np.zeros(best.shape, np.uint8)
    for number in range(1, scores.shape[-1]):
        higher = scores[..., number] > best
        np.copyto(best, scores[..., number], where=higher)
        classes[higher] = number
    return classes
