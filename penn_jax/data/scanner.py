"""The phantom's scanner: coil, noise, the patient's pose, and the order of the stored axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Shaped
from scipy.spatial.transform import Rotation

from penn_jax.data.painting import smooth_field
from penn_jax.data.spine import Chart

# Ways to store a sagittal scan: the direction in which each array axis runs.
ORIENTATIONS = ("IPR", "IPL", "PIR", "AIL", "ASR", "SAL", "RAS", "LPS", "RSA", "LIP", "ILA", "PRS")
AXIS_OF = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


def coil(rng: np.random.Generator, c: Chart) -> Float32[np.ndarray, "X Y Z"]:
    """Sensitivity of a coil under the back, times a smooth field: the bias of the image."""
    reach = rng.uniform(110, 220)
    falloff = 1 / (1 + (np.maximum(c.under_skin, 0) / reach) ** 2)
    return 1.3 * falloff * np.exp(rng.uniform(0.05, 0.15) * smooth_field(rng, c.axes, 60.0))


def rician(
    rng: np.random.Generator, signal: Float32[np.ndarray, "*grid"], sigma: float
) -> Float32[np.ndarray, "*grid"]:
    """Magnitude of a complex signal with noise: |signal + σ(n₁ + i n₂)|; in air Rayleigh.

    Reference: Gudbjartsson and Patz, The Rician distribution of noisy MRI data, 1995.
    """
    noise = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(sigma)
    return np.hypot(signal + noise[0], noise[1])


def draw_orientation(rng: np.random.Generator, spacing: Sequence[float] | None = None) -> str:
    """Draw one of ``ORIENTATIONS``; with the spacing of the stored axes, one that suits it.

    It suits if the axis across the sagittal slices is one of the coarsest.
    """

    def suits(orientation: str) -> bool:
        across = next(i for i, letter in enumerate(orientation) if AXIS_OF[letter] == 0)
        return spacing is None or spacing[across] == max(spacing)

    return str(rng.choice([o for o in ORIENTATIONS if suits(o)]))


def store_as(
    array: Shaped[np.ndarray, "right anterior superior"], orientation: str
) -> Shaped[np.ndarray, "X Y Z"]:
    """Turn axes (right, anterior, superior) into the given order and directions."""
    turned = array.transpose([AXIS_OF[letter] for letter in orientation])
    flips = tuple(slice(None, None, -1 if letter in "LPI" else 1) for letter in orientation)
    return np.ascontiguousarray(turned[flips])


def stored_affine(
    orientation: str, shape: Sequence[int], spacing: Sequence[float]
) -> Float[np.ndarray, "4 4"]:
    """Stored voxel to mm, the middle of the grid at the origin.

    Args:
        orientation: of the stored axes.
        shape: of the grid (right, anterior, superior).
        spacing: the same in mm.
    """
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored, letter in enumerate(orientation):
        axis = AXIS_OF[letter]
        sign = -1 if letter in "LPI" else 1
        affine[axis, stored] = sign * spacing[axis]
        affine[axis, 3] = -sign * spacing[axis] * (shape[axis] - 1) / 2
    return affine


def draw_pose(rng: np.random.Generator) -> Float[np.ndarray, "4 4"]:
    """How the patient lies in the scanner: a few degrees and centimetres off."""
    pose = np.eye(4)
    angles = np.clip(rng.normal(0, 4, 3), -10, 10)
    pose[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    pose[:3, 3] = rng.uniform(-30, 30, 3)
    return pose
