"""Dense prediction of whole frames, in tiles where a frame is large, the same either way.

With running statistics the network is a local function of the image. Tiles start at multiples of
its total stride and share twice its halo, so each voxel's score is that of the whole frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float32, Shaped

from penn_jax.data.patches import PatchGrid, extract, patch_grid, place

Forward = Callable[[Float32[np.ndarray, "B *tile C"]], Shaped[np.ndarray, "B ..."]]
"""From a batch of tiles to something for each voxel: labels (B, *tile) or scores (B, *tile, K)."""


@dataclass(frozen=True)
class Tiling:
    """What dense prediction must know of the network.

    Attributes:
        stride: the network's total stride; every tile is a multiple of it.
        halo: voxels around a tile on which its scores depend, a multiple of ``stride``.
        neighbours: slices on each side that join as channels.
        batch_size: tiles evaluated at once.
        most_voxels: of one tile; a frame with more is cut.
    """

    stride: int
    halo: int
    neighbours: int
    batch_size: int
    most_voxels: int = 1 << 21


def predict_frames(
    forward: Forward, frames: Float32[np.ndarray, "F *spatial C"], tiling: Tiling
) -> Shaped[np.ndarray, "F ..."]:
    """Evaluate the network once for every voxel of every frame.

    Args:
        forward: the network; called with one shape only for all frames of a size.
        frames: prepared frames.
        tiling: see :class:`Tiling`.

    Returns:
        What ``forward`` gives for each voxel, on the frames' own grid.
    """
    spatial = frames.shape[1:-1]
    grid = tile_grid(spatial, tiling)
    padded = _pad_to(frames, grid.shape)
    jobs = list(product(range(len(frames)), range(len(grid))))
    positions = grid.positions()
    batch_size = min(tiling.batch_size, len(jobs))
    result: np.ndarray | None = None
    for first in range(0, len(jobs), batch_size):
        batch = jobs[first : first + batch_size]
        # The last batch is filled up with its last tile: another shape would compile again.
        full = batch + [batch[-1]] * (batch_size - len(batch))
        tiles = np.stack(
            [_tile(padded, frame, grid, tile, tiling.neighbours) for frame, tile in full]
        )
        values = np.asarray(forward(tiles))
        if result is None:
            more = values.shape[1 + len(spatial) :]
            result = np.empty((len(frames), *grid.shape, *more), values.dtype)
        for value, (frame, tile) in zip(values, batch, strict=False):
            place(result[frame], value, grid, positions[tile])
    assert result is not None  # a volume has at least one frame
    return result[(slice(None), *(slice(0, size) for size in spatial))]


def tile_grid(spatial: tuple[int, ...], tiling: Tiling) -> PatchGrid:
    """The whole frame, rounded up to the stride, as one tile, or as few tiles that fit."""
    shape = tuple(-(-size // tiling.stride) * tiling.stride for size in spatial)
    overlap = 2 * tiling.halo
    size = list(shape)
    while np.prod(size) > tiling.most_voxels:
        axis = int(np.argmax(size))
        smaller = (size[axis] // 2 // tiling.stride) * tiling.stride
        if smaller < overlap + tiling.stride:
            break  # a tile of halo alone would advance nowhere
        size[axis] = smaller
    shared = [overlap if part < whole else 0 for part, whole in zip(size, shape, strict=True)]
    return patch_grid(shape, size, shared, tiling.stride)


def _pad_to(
    frames: Float32[np.ndarray, "F *spatial C"], shape: tuple[int, ...]
) -> Float32[np.ndarray, "F *padded C"]:
    """Continue the frames with their edge up to ``shape``, as patches do while training."""
    pad = [(0, whole - size) for whole, size in zip(shape, frames.shape[1:-1], strict=True)]
    return np.pad(frames, [(0, 0), *pad, (0, 0)], mode="edge")


def _tile(
    frames: Float32[np.ndarray, "F *padded C"],
    frame: int,
    grid: PatchGrid,
    tile: int,
    neighbours: int,
) -> Float32[np.ndarray, "*tile M"]:
    """One tile with its neighbouring slices as channels, ordered as in training patches."""
    wanted = np.clip(np.arange(frame - neighbours, frame + neighbours + 1), 0, len(frames) - 1)
    cuts = [extract(frames[i], grid, slice(tile, tile + 1))[0] for i in wanted]
    return np.concatenate(cuts, axis=-1)
