"""One scan: files in, class probabilities and a mask on the scan's own grid out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from penn_jax.data.grid import from_frames, normalise, to_frames
from penn_jax.data.volume import Volume, frame_grid, read_image
from penn_jax.predict.dense import Forward, Tiling, predict_frames


def predict_case(
    paths: Sequence[Path],
    forward: Forward,
    tiling: Tiling,
    dimensions: int,
    spacing: Sequence[float] | None,
) -> tuple[Volume, Float32[np.ndarray, "X Y Z K"]]:
    """Predict one scan by the steps that ``penn prepare`` took: orient, resample, normalise.

    Args:
        paths: one file for each channel.
        forward: from tiles to class probabilities (B, *tile, K), float32.
        tiling: what dense prediction must know of the network.
        dimensions: spatial axes of the network's frames.
        spacing: of the frames in mm; None for the scan's own.

    Returns:
        The scan, and the probabilities of its voxels on its own grid.

    Raises:
        InputError: a file cannot be read or used.
    """
    scan = read_image(paths)
    grid = frame_grid(scan, dimensions, spacing)
    frames = normalise(to_frames(scan.array, grid, order=1))
    return scan, from_frames(predict_frames(forward, frames, tiling), grid, order=1)


def most_likely(
    probabilities: Float32[np.ndarray, "X Y Z K"], values: Sequence[int]
) -> UInt8[np.ndarray, "X Y Z"]:
    """The mask: in each voxel the value of the most likely class.

    Args:
        probabilities: of K classes.
        values: what each class is called in the masks that the network was trained on.
    """
    return np.asarray(values, np.uint8)[np.argmax(probabilities, axis=-1)]
