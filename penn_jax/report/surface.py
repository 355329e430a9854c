"""Distances in mm between the surfaces of two masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from scipy import ndimage


class SurfaceDistances(NamedTuple):
    """Both in mm; NaN where either mask is empty."""

    hd95: float
    mean_surface_distance: float


def surface_distances(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
) -> SurfaceDistances:
    """The 95th percentile Hausdorff distance and the average symmetric surface distance.

    With P and R the surface voxels of prediction and reference, d(p, R) the distance from voxel
    centre to the nearest of R: HD95 = max(q95 {d(p, R)}, q95 {d(r, P)}), and the mean is that of
    all d(p, R) and d(r, P) together. A surface voxel is one of the mask with a face neighbour
    outside it or outside the image. These are the definitions of MONAI.

    Args:
        prediction: bool mask in two or three dimensions.
        reference: bool mask of the same shape.
        spacing: mm between voxel centres along each axis.

    Returns:
        Both distances in mm, NaN where either mask is empty.

    Raises:
        ValueError: shapes differ, or spacing has another number of axes.

    References:
        Huttenlocher et al. 1993, IEEE TPAMI 15(9); Heimann et al. 2009, IEEE TMI 28(8).
    """
    if prediction.shape != reference.shape or len(spacing) != prediction.ndim:
        raise ValueError(
            f"prediction {prediction.shape}, reference {reference.shape} and spacing "
            f"{tuple(spacing)} differ in shape or axes"
        )
    if not prediction.any() or not reference.any():
        return SurfaceDistances(float("nan"), float("nan"))
    # The nearest surface voxel is always inside the box of both masks, so nothing is lost.
    box = ndimage.find_objects((prediction | reference).astype(np.uint8))[0]
    predicted, true = _surface(prediction[box]), _surface(reference[box])
    to_reference = _distances(predicted, true, spacing)
    to_prediction = _distances(true, predicted, spacing)
    hd95 = max(np.percentile(to_reference, 95), np.percentile(to_prediction, 95))
    mean = np.concatenate([to_reference, to_prediction]).mean()
    return SurfaceDistances(float(hd95), float(mean))


def _surface(mask: Bool[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    return np.logical_and(mask, np.logical_not(ndimage.binary_erosion(mask)))


def _distances(
    start: Bool[np.ndarray, "*shape"], goal: Bool[np.ndarray, "*shape"], spacing: Sequence[float]
) -> Float64[np.ndarray, " n"]:
    """From each voxel of ``start`` to the nearest of ``goal``, in mm."""
    distances = ndimage.distance_transform_edt(~goal, sampling=tuple(spacing))
    return np.asarray(distances)[start]
