"""Dense prediction of whole frames, in tiles where memory asks for them, the same either way.

The answer is defined without tiles: a frame is continued with its edge up to the next multiple of
the network's total stride, as patches are while training, and the network is evaluated on the whole
of it. With running statistics the network is a local function of that image: tiles start at
multiples of the stride and share twice its halo, and where a tile ends inside the image only voxels
whose scores do not depend on the tile's end are kept. No tile and no memory budget changes the
answer.

No more is added around a frame: networks trained on whole slices take the end of the image as a
landmark, and moving it, by a halo of continued image for example, lowers their Dice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Shaped

from penn_jax.data.patches import PatchGrid, extract, patch_grid
from penn_jax.types import InputError

Forward = Callable[[Float32[np.ndarray, "B *tile C"]], Shaped[np.ndarray, "B ..."]]
"""From a batch of tiles to something for each voxel: labels (B, *tile) or scores (B, *tile, K)."""

GIB = 1024**3

WHOLE_FRAME = 1 << 40
"""The halo of a network whose scores depend on the whole frame: no tile is exact."""


@dataclass(frozen=True)
class Tiling:
    """What dense prediction must know of the network and of the machine.

    Attributes:
        stride: the network's total stride; every tile is a multiple of it.
        halo: voxels around a tile on which its scores depend, a multiple of ``stride``.
        neighbours: slices on each side that join as channels.
        batch_size: most tiles evaluated at once.
        voxel_bytes: memory that one voxel of a tile takes while it is evaluated.
        memory_budget: of an evaluation, GiB.
    """

    stride: int
    halo: int
    neighbours: int
    batch_size: int
    voxel_bytes: float = 256.0
    memory_budget: float = 1.0

    @property
    def most_voxels(self) -> int:
        """Voxels of a batch of tiles that fit the budget."""
        return int(self.memory_budget * GIB / self.voxel_bytes)


class Block(NamedTuple):
    """Scores of a part of one frame."""

    frame: int
    box: tuple[slice, ...]
    """The part; the boxes of a frame's blocks cover each of its voxels once."""
    reach: tuple[slice, ...]
    """The box and the margin around it, as far as the frame goes."""
    values: Shaped[np.ndarray, "*reach_and_more"]


def predict_frames(
    forward: Forward, frames: Float32[np.ndarray, "F *spatial C"], tiling: Tiling
) -> Shaped[np.ndarray, "F ..."]:
    """Evaluate the network once for every voxel of every frame.

    Args:
        forward: the network; called with one shape only for all frames of a size, every axis a
            multiple of the total stride.
        frames: prepared frames.
        tiling: see ``Tiling``.

    Returns:
        What ``forward`` gives for each voxel, on the frames' own grid.

    Raises:
        InputError: the budget is too small for one tile.
    """
    result: np.ndarray | None = None
    for block in predict_blocks(forward, frames, tiling):
        if result is None:
            more = block.values.shape[len(block.box) :]
            result = np.empty((*frames.shape[:-1], *more), block.values.dtype)
        result[(block.frame, *block.box)] = block.values
    assert result is not None  # a volume has at least one frame
    return result


def predict_blocks(
    forward: Forward,
    frames: Float32[np.ndarray, "F *spatial C"],
    tiling: Tiling,
    margins: Sequence[int] | None = None,
) -> Iterator[Block]:
    """Evaluate the network tile by tile; never more than two batches of scores are held.

    Args:
        forward: as in ``predict_frames``; it runs in a thread of its own, so that the next
            batch is evaluated while the caller works on the last.
        frames: prepared frames.
        tiling: see ``Tiling``.
        margins: for each axis, voxels around each block that are given too.

    Yields:
        The blocks, frame by frame.

    Raises:
        InputError: the budget is too small for one tile.
    """
    spatial = frames.shape[1:-1]
    margins = tuple(margins or (0,) * len(spatial))
    grid = tile_grid(spatial, tiling, margins)
    # Tiles that lie in the continuation of the frame alone are not needed.
    inside = [
        (number, position)
        for number, position in enumerate(grid.positions())
        if all(b[i] < n for b, i, n in zip(grid.bounds, position, spatial, strict=True))
    ]
    jobs = list(product(range(len(frames)), inside))
    fitting = max(1, tiling.most_voxels // _voxels(grid.size, tiling.stride))
    batch_size = min(tiling.batch_size, fitting, len(jobs))
    waiting: deque[tuple[list, Future]] = deque()
    with ThreadPoolExecutor(1) as device:
        for first in range(0, len(jobs), batch_size):
            batch = jobs[first : first + batch_size]
            # The last batch is filled up with its last tile: another shape would compile again.
            full = batch + [batch[-1]] * (batch_size - len(batch))
            tiles = np.stack(
                [_tile(frames, frame, grid, number, tiling) for frame, (number, _) in full]
            )
            waiting.append((batch, device.submit(_evaluate, forward, tiles)))
            if len(waiting) > 1:
                yield from _kept(*waiting.popleft(), grid, spatial, margins)
        while waiting:
            yield from _kept(*waiting.popleft(), grid, spatial, margins)


def _evaluate(forward: Forward, tiles: np.ndarray) -> np.ndarray:
    return np.asarray(forward(tiles))


def _kept(
    batch: list, values: Future, grid: PatchGrid, spatial: Sequence[int], margins: Sequence[int]
) -> Iterator[Block]:
    for (frame, (_, position)), value in zip(batch, values.result(), strict=False):
        box, reach, inside = [], [], []
        for axis, i in enumerate(position):
            start, length, margin = grid.starts[axis][i], spatial[axis], margins[axis]
            first, stop = grid.bounds[axis][i], min(grid.bounds[axis][i + 1], length)
            low, high = max(0, first - margin), min(length, stop + margin)
            box.append(slice(first, stop))
            reach.append(slice(low, high))
            inside.append(slice(low - start, high - start))
        yield Block(frame, tuple(box), tuple(reach), value[tuple(inside)])


def flips(dimensions: int) -> Bool[np.ndarray, "choices axes"]:
    """Every set of axes to mirror, none first."""
    return np.array(list(product((False, True), repeat=dimensions)))


def over_mirrorings(forward: Forward, dimensions: int, mirror: bool = True) -> Forward:
    """The mean of a network's probabilities over the mirrorings along every set of axes.

    One mirroring is evaluated after the other: no more than two are ever held.

    Args:
        forward: from tiles to class probabilities (B, *tile, K).
        dimensions: spatial axes of a tile.
        mirror: False gives ``forward`` itself.
    """
    if not mirror:
        return forward
    mirrorings = [tuple((1 + np.flatnonzero(choice)).tolist()) for choice in flips(dimensions)]

    def mean(tiles: Float32[np.ndarray, "B *tile C"]) -> Float32[np.ndarray, "B *tile K"]:
        total = forward(tiles)
        for flip in mirrorings[1:]:
            total = total + np.flip(forward(np.flip(tiles, flip)), flip)
        return total / np.float32(len(mirrorings))

    return mean


def bucket_size(size: int, stride: int) -> int:
    """The next of a series of at most 4 sizes an octave, so that few shapes are compiled.

    Multiples of the stride up to 8 of them, then of 2 strides up to 16, of 4 up to 32, ….
    """
    strides = -(-size // stride)
    step = 2 ** max(0, (strides - 1).bit_length() - 3)
    return -(-strides // step) * step * stride


def tile_grid(
    spatial: Sequence[int], tiling: Tiling, margins: Sequence[int] | None = None
) -> PatchGrid:
    """The whole frame, rounded up to the stride, or the tiles within the budget that cost least.

    A tile is as long as the whole frame along an axis, or of the series of ``bucket_size``.

    Args:
        spatial: of a frame.
        tiling: see ``Tiling``.
        margins: for each axis, voxels around what is kept of a tile that must be exact too.

    Raises:
        InputError: the budget is too small for one tile.
    """
    shape = tuple(-(-size // tiling.stride) * tiling.stride for size in spatial)
    return _plan(shape, tiling, tuple(margins or (0,) * len(shape)))


@lru_cache
def _plan(shape: tuple[int, ...], tiling: Tiling, margins: tuple[int, ...]) -> PatchGrid:
    stride, most = tiling.stride, tiling.most_voxels
    overlaps = [2 * (tiling.halo + -(-margin // stride) * stride) for margin in margins]
    if _voxels(shape, stride) <= most:
        return patch_grid(shape, shape, (0,) * len(shape), stride)
    sizes = [
        sorted(
            {length}
            | {
                bucket_size(size, stride)
                for size in range(overlap + stride, length, stride)
                if bucket_size(size, stride) < length
            }
        )
        for length, overlap in zip(shape, overlaps, strict=True)
    ]
    costs = [
        {size: size * _count(length, size, overlap) for size in axis}
        for length, overlap, axis in zip(shape, overlaps, sizes, strict=True)
    ]
    fitting = [choice for choice in product(*sizes) if _voxels(choice, stride) <= most]
    if not fitting:
        least = _voxels([min(axis) for axis in sizes], stride) * tiling.voxel_bytes / GIB
        raise InputError(
            "--memory-budget",
            f"{tiling.memory_budget:g} GiB is less than one tile takes",
            f"at least {math.ceil(least * 100) / 100:g} GiB for this network and scan",
            "raise --memory-budget (--predict.memory-budget while training)",
        )
    # Among equals the fewest voxels: least memory.
    size = min(
        fitting,
        key=lambda choice: (
            math.prod(cost[part] for cost, part in zip(costs, choice, strict=True)),
            math.prod(choice),
        ),
    )
    shared = [
        overlap if part < length else 0
        for part, length, overlap in zip(size, shape, overlaps, strict=True)
    ]
    return patch_grid(shape, size, shared, stride)


def _voxels(size: Sequence[int], stride: int) -> int:
    """Voxels that a tile of this size takes where it is evaluated."""
    return math.prod(bucket_size(part, stride) for part in size)


def _count(length: int, size: int, overlap: int) -> int:
    """Tiles along an axis."""
    return 1 if size == length else 1 + -(-(length - size) // (size - overlap))


def _tile(
    frames: Float32[np.ndarray, "F *spatial C"],
    frame: int,
    grid: PatchGrid,
    number: int,
    tiling: Tiling,
) -> Float32[np.ndarray, "*tile M"]:
    """One tile with its neighbouring slices as channels, ordered as in training patches."""
    reach = tiling.neighbours
    wanted = np.clip(np.arange(frame - reach, frame + reach + 1), 0, len(frames) - 1)
    # Beyond the frame a tile continues with the frame's edge.
    cuts = [extract(frames[i], grid, slice(number, number + 1))[0] for i in wanted]
    return np.concatenate(cuts, axis=-1)
