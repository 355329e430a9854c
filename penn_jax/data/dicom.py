"""DICOM series: a folder of slices becomes one volume, in the NIfTI sense of its axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from penn_jax.data.dicom_slices import Slice, read_pixels, read_slices, read_tags
from penn_jax.data.header import LARGEST_BYTES
from penn_jax.types import InputError

_SAME_DIRECTION = 1e-3
"""Difference of direction cosines that scanners' rounding may make."""
_OFF_PLACE = 0.1
"""Of the distance between slices: how far from its place a slice may lie."""

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's axes point left, posterior and up; NIfTI's right, anterior and up."""


def series_grid(folder: Path) -> tuple[tuple[int, int, int], Float64[np.ndarray, "4 4"]]:
    """Where the voxels of a series lie, without their values.

    Args:
        folder: of one series.

    Returns:
        Shape (X, Y, Z): columns, rows, slices; affine from voxel to mm in RAS.

    Raises:
        InputError: as :func:`read_series`.
    """
    slices = _ordered(folder)
    rows, columns = slices[0].shape
    return (columns, rows, len(slices)), _affine(folder, slices)


def read_series(folder: Path) -> tuple[Float32[np.ndarray, "X Y Z"], Float64[np.ndarray, "4 4"]]:
    """Read a series as one volume, each slice scaled by its own slope and intercept.

    Args:
        folder: of one series; what is no image, and files that are no DICOM, are passed over.

    Returns:
        (X, Y, Z): columns, rows, slices along the normal; affine from voxel to mm in RAS.

    Raises:
        InputError: pydicom is not installed; not exactly one series of one volume of one real
            number a pixel; slices are missing, unevenly spaced or cannot be read.
    """
    slices = _ordered(folder)
    affine = _affine(folder, slices)
    rows, columns = slices[0].shape
    array = np.empty((columns, rows, len(slices)), np.float32, order="F")
    for number, one in enumerate(slices):
        with np.errstate(over="ignore"):  # what is infinite is told of the whole volume
            array[..., number] = read_pixels(one).T * one.slope + one.intercept
    return array, affine


def series_headers(folder: Path) -> list[Any]:
    """The whole headers of the slices of a series, in the order of the volume, without pixels.

    Raises:
        InputError: as :func:`read_series`.
    """
    return [read_tags(one.path, None) for one in _ordered(folder)]


# ---- one volume --------------------------------------------------------------------------------


def _ordered(folder: Path) -> list[Slice]:
    """The slices of the one series in a folder, along their normal.

    Raises:
        InputError: they are not those of one volume.
    """
    slices = read_slices(folder)
    if not slices:
        raise InputError(folder, "no DICOM images in it", "one series", "give another folder")
    _check_one_series(folder, slices)
    for one in slices:
        _check_kind(one)
        _check_alike(one, slices[0])
    rows, columns = slices[0].shape
    size = rows * columns * len(slices) * np.dtype(np.float32).itemsize
    if size > LARGEST_BYTES:
        wrong = f"its {len(slices)} slices make {size / 1024**3:.1f} GiB"
        raise InputError(folder, wrong, f"at most {LARGEST_BYTES / 1024**3:g} GiB", "crop it")
    normal = np.cross(*slices[0].orientation)
    return sorted(slices, key=lambda one: float(one.position @ normal))


def _check_one_series(folder: Path, slices: Sequence[Slice]) -> None:
    series: dict[str, list[Slice]] = {}
    for one in slices:
        series.setdefault(one.series, []).append(one)
    if len(series) > 1:
        # Neither the series' description, free text that may name anyone, nor its UID is told.
        told = "; ".join(
            f"number {these[0].number or '?'} ({these[0].modality}, {len(these)} images, "
            f"{these[0].path.name} …)"
            for these in series.values()
        )
        raise InputError(
            folder, f"holds {len(series)} series: {told}", "one", "give each a folder of its own"
        )


def _check_kind(one: Slice) -> None:
    if one.frames != 1:
        wrong, remedy = f"holds {one.frames} frames", "convert it to NIfTI, as with dcm2niix"
        raise InputError(one.path, wrong, "a file for each slice", remedy)
    if one.samples != 1 or one.photometric != "MONOCHROME2":
        wrong = f"its pixels are {one.photometric}"
        raise InputError(one.path, wrong, "grey ones (MONOCHROME2)", "export the original slices")
    if min(one.shape) < 1:
        raise InputError(one.path, f"its shape is {one.shape}", "pixels", "export it again")
    values = (*one.position, *one.orientation.flat, *one.spacing, one.slope, one.intercept)
    if not np.isfinite(values).all() or min(*one.spacing, one.thickness) <= 0:
        wrong = "its position, spacing or rescaling is not finite, or a spacing not positive"
        raise InputError(one.path, wrong, "a slice in space", "export it again")
    product = one.orientation @ one.orientation.T
    if np.abs(product - np.eye(2)).max() > 0.01:
        wrong = "its row and column are no unit vectors at right angles"
        raise InputError(one.path, wrong, "an ImageOrientationPatient", "export it again")


def _check_alike(one: Slice, first: Slice) -> None:
    for what, same in (
        ("shape", one.shape == first.shape),
        ("pixel spacing", np.allclose(one.spacing, first.spacing, rtol=_SAME_DIRECTION, atol=0)),
        (
            "orientation",
            np.abs(one.orientation - first.orientation).max() <= _SAME_DIRECTION,
        ),
        ("frame of reference", one.frame_of_reference == first.frame_of_reference),
    ):
        if not same:
            raise InputError(
                one.path,
                f"is of another {what} than {first.path.name}",
                "slices of one volume",
                "move what does not belong to it, as a localiser, to another folder",
            )


def _affine(folder: Path, slices: Sequence[Slice]) -> Float64[np.ndarray, "4 4"]:
    """From (column, row, slice) to mm in RAS.

    Raises:
        InputError: the slices are not evenly spaced along a line.
    """
    first = slices[0]
    step = np.cross(*first.orientation) * first.thickness
    if len(slices) > 1:
        positions = np.stack([one.position for one in slices])
        _check_gaps(folder, slices, positions)
        step = (positions[-1] - positions[0]) / (len(slices) - 1)
        places = first.position + np.arange(len(slices))[:, None] * step
        off = np.linalg.norm(positions - places, axis=1)
        if off.max() > _OFF_PLACE * np.linalg.norm(step):
            worst = slices[int(off.argmax())].path
            wrong = f"lies {off.max():.3g} mm off the line of the others"
            raise InputError(worst, wrong, "evenly spaced slices", "resample the series to NIfTI")
    affine = np.eye(4)
    affine[:3, :2] = (first.orientation * first.spacing[:, None]).T
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return _TO_RAS @ affine


def _check_gaps(
    folder: Path, slices: Sequence[Slice], positions: Float64[np.ndarray, "N 3"]
) -> None:
    gaps = np.diff(positions @ np.cross(*slices[0].orientation))
    usual = float(np.median(gaps))
    for gap, before, after in zip(gaps.tolist(), slices, slices[1:], strict=False):
        both = f"{before.path.name} and {after.path.name}"
        if gap <= _OFF_PLACE * usual or math.isclose(gap, 0, abs_tol=1e-6):
            raise InputError(
                folder,
                f"{both} lie at one place",
                "one volume",
                "move the other echoes, contrasts or times to folders of their own",
            )
        if abs(gap - usual) > _OFF_PLACE * usual:
            wrong = f"{both} lie {gap:.4g} mm apart, the slices elsewhere {usual:.4g} mm"
            remedy = "add what is missing, or resample it to NIfTI"
            raise InputError(folder, wrong, "evenly spaced slices, none missing", remedy)
