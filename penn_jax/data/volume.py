"""Volumes in files: read with every doubt raised, written as NIfTI with the geometry of another.

A NIfTI file is read whole, once, piece by piece into memory that grows with what is there: what its
header claims is checked before (``header.py``), its gzip checksum and its end after.
"""

from __future__ import annotations

import gzip
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float, Float32, Float64, Real, UInt8
from nibabel.arrayproxy import ArrayProxy

from penn_jax.data.dicom import read_series, series_grid
from penn_jax.data.dicom_slices import is_series
from penn_jax.data.grid import LARGEST_INTENSITY, LEAST_CONTRAST, FrameGrid, plan_frames
from penn_jax.data.header import (
    LARGEST_BYTES,
    Header,
    affine_of,
    end_of_data,
    header_of,
    opened,
    read_header,
    shape_of,
)
from penn_jax.types import InputError

_PIECE = 16 * 1024**2
"""Bytes read at a time."""

_BOMB_BYTES, _BOMB_PACKING = 256 * 1024**2, 200
"""No image of more bytes packs better than so: noise does not. Masks and zeros may."""

_GEOMETRY = (
    *("dim", "pixdim", "dim_info", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
"""Fields of a NIfTI header that say where the voxels lie, and no more."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie in the scanner's space."""

    array: np.ndarray
    """Image: float32 (X, Y, Z, C). Labels: uint8 (X, Y, Z)."""
    affine: Float64[np.ndarray, "4 4"]
    """(4, 4), from voxel to mm."""
    path: Path
    """The file, or the first channel's."""
    _header: Header = field(repr=False)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxels along each file axis, mm."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)).tolist()
        return x, y, z

    @property
    def orientation(self) -> str:
        """Where each file axis points: ``RAS`` is right, anterior, superior."""
        return "".join(map(str, nib.orientations.aff2axcodes(self.affine)))


def frame_grid(volume: Volume, dimensions: int, spacing: Sequence[float] | None) -> FrameGrid:
    """Plan the frames of a volume in the closest canonical (RAS) orientation.

    Args:
        volume: image or labels.
        dimensions: 2 slices the volume along its coarsest axis, 3 keeps it whole.
        spacing: target of the frames' spatial axes in mm, None for the native one.

    Returns:
        The plan for ``to_frames`` and ``from_frames``.

    Raises:
        InputError: the frames would be larger than any file may be.
    """
    orientation = nib.orientations.io_orientation(volume.affine)
    grid = plan_frames(volume.array.shape[:3], volume.affine, orientation, dimensions, spacing)
    size = math.prod(grid.shape) * np.dtype(np.float32).itemsize
    if size > LARGEST_BYTES:
        native = " × ".join(f"{mm:.3g}" for mm in volume.spacing)
        target = " × ".join(f"{mm:.3g}" for mm in grid.spacing)
        raise InputError(
            volume.path,
            f"its voxels of {native} mm make {size / 1024**3:.1f} GiB of frames of {target} mm",
            f"at most {LARGEST_BYTES / 1024**3:g} GiB",
            "check the voxel sizes in the header, or choose a coarser --spacing",
        )
    return grid


def read_image(paths: Sequence[Path]) -> Volume:
    """Read one image, a file for each channel, all on one grid.

    Args:
        paths: at least one ``.nii.gz`` or ``.nii``, three axes, or more if the rest are of size 1;
            or a folder of one DICOM series.

    Returns:
        float32 (X, Y, Z, C), scaled as the header says.

    Raises:
        InputError: a file cannot be read, is not a finite varying scalar image, or does not share
            the first file's grid.
    """
    volumes = [_read_channel(Path(path)) for path in paths]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        check_same_grid(path, volume, paths[0], volumes[0])
    arrays = [volume.array[..., np.newaxis] for volume in volumes]
    array = np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0]
    return replace(volumes[0], array=array)


def _read_channel(path: Path) -> Volume:
    if is_series(path):
        array, affine = read_series(path)
        header = header_of(array.shape, affine, path)
    else:
        with opened(path) as stream:
            header = read_header(path, stream)
            _check_packing(path, header)
            array = np.asarray(_voxels(header, stream), np.float32)
    if broken := array.size - np.count_nonzero(np.isfinite(array)):
        wrong = f"{broken} voxels are NaN, infinite or beyond float32"
        raise InputError(path, wrong, "finite intensities", "repair it or leave the case out")
    low, high = float(array.min()), float(array.max())
    if max(-low, high) > LARGEST_INTENSITY:
        wrong = f"intensities reach from {low:g} to {high:g}"
        expected = f"none beyond ±{LARGEST_INTENSITY:g}"
        raise InputError(path, wrong, expected, "check its scaling (scl_slope, scl_inter)")
    if high - low < LEAST_CONTRAST:
        wrong = f"every voxel is {low:g}" if low == high else f"voxels differ by {high - low:g}"
        raise InputError(path, wrong, "an image with contrast", "check how it was exported")
    return _volume(path, array, header)


def read_labels(path: Path) -> Volume:
    """Read a label map.

    Args:
        path: ``.nii.gz`` or ``.nii``; of any real type as long as the values are whole numbers.

    Returns:
        uint8 (X, Y, Z).

    Raises:
        InputError: the file cannot be read, or a value is not a whole number of 0 to 255.
    """
    with opened(path) as stream:
        header = read_header(path, stream)
        array = np.asarray(_voxels(header, stream))
        fractions = array[array != np.trunc(array)]
    expected = "whole numbers of 0 to 255"
    if fractions.size:
        wrong = f"label {fractions[0]:g} is not a whole number"
        raise InputError(path, wrong, expected, "export it again without interpolation")
    if array.min() < 0 or array.max() > 255:
        wrong = f"labels run from {array.min():g} to {array.max():g}"
        raise InputError(path, wrong, expected, "renumber the labels")
    return _volume(path, array.astype(np.uint8), header)


def read_geometry(path: Path) -> Volume:
    """Read only where the voxels lie: a volume whose array has the shape but holds no data.

    Args:
        path: ``.nii.gz`` or ``.nii``, or a folder of one DICOM series.

    Returns:
        An array of zeros that takes no memory, the affine and the header.

    Raises:
        InputError: the header is not that of a usable scalar image.
    """
    if is_series(path):
        shape, affine = series_grid(path)
        header = header_of(shape, affine, path)
    else:
        with opened(path) as stream:
            header = read_header(path, stream)
    return _volume(path, np.broadcast_to(np.uint8(0), shape_of(header)), header)


def write_mask(path: Path, mask: UInt8[np.ndarray, "X Y Z"], like: Volume) -> None:
    """Write a mask that overlays its scan in any viewer, whole or not at all.

    Args:
        path: ends in ``.nii.gz``.
        mask: uint8 (X, Y, Z) on the grid of ``like``.
        like: the scan; its shape, affine, qform, sform, codes, zooms and units are kept. Nothing
            else is, as descriptions and extensions of a scan may name the patient.
    """
    _write(path, mask.reshape(like._header.get_data_shape()), like)


def write_probabilities(
    path: Path, probabilities: Float[np.ndarray, "X Y Z K"], like: Volume
) -> None:
    """Write the probability of each class as one image of four axes, geometry as ``write_mask``.

    Args:
        path: ends in ``.nii.gz``.
        probabilities: (X, Y, Z, K) on the grid of ``like``, written as float32.
        like: the scan.
    """
    _write(path, probabilities.astype(np.float32, copy=False), like)


def write_map(path: Path, values: Float32[np.ndarray, "X Y Z"], like: Volume) -> None:
    """Write a number for each voxel as float32, geometry as ``write_mask``."""
    _write(path, values.reshape(like._header.get_data_shape(), order="F"), like)


def _write(path: Path, array: np.ndarray, like: Volume) -> None:
    header = type(like._header)()
    for name in _GEOMETRY:
        header[name] = like._header[name]
    header.set_data_dtype(array.dtype)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    _write_whole(path, kind(array, None, header))


def write_image(
    path: Path, array: Real[np.ndarray, "X Y Z"], affine: Float[np.ndarray, "4 4"]
) -> None:
    """Write an image of our own making, whole or not at all.

    Args:
        path: ends in ``.nii.gz``.
        array: (X, Y, Z), of the type it is to have in the file.
        affine: (4, 4), voxel to mm.
    """
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    _write_whole(path, image)


def _write_whole(path: Path, image: nib.Nifti1Image) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # No name and no time in the gzip header: the same image is the same bytes. Streamed, for
        # the probabilities of many classes exceed the memory.
        with temporary.open("wb") as file, gzip.GzipFile("", "wb", 4, file, mtime=0) as stream:
            image.to_stream(stream)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_same_grid(path: Path, volume: Volume, reference: Path, expected: Volume) -> None:
    """Make sure that two files describe the same voxels.

    Affines agree when no corner of the volume moves by more than a tenth of the smallest voxel:
    programs round them differently.

    Raises:
        InputError: shapes or affines differ.
    """
    shape, other = volume.array.shape[:3], expected.array.shape[:3]
    remedy = f"resample it to {reference}"
    if shape != other:
        raise InputError(path, f"shape {shape}", f"{other} as in {reference}", remedy)
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    corners[:, :3] *= np.array(shape) - 1
    moved = np.abs(corners @ (volume.affine - expected.affine).T).max()
    if moved > 0.1 * min(expected.spacing):
        raise InputError(
            path,
            f"its affine puts a corner {moved:.3g} mm off",
            f"the affine of {reference}",
            remedy,
        )


def _check_packing(path: Path, header: Header) -> None:
    """Refuse an image of nothing before it fills the memory: the gzip bomb."""
    claim = max(end_of_data(header), math.prod(shape_of(header)) * np.dtype(np.float32).itemsize)
    packing = end_of_data(header) / path.stat().st_size
    if claim > _BOMB_BYTES and packing > _BOMB_PACKING:
        wrong = f"its {claim / 1024**3:.1f} GiB are packed {packing:.0f} times smaller"
        raise InputError(path, wrong, "an image with contrast", "check how it was exported")


def _voxels(header: Header, stream: io.BufferedIOBase) -> ArrayProxy:
    """The voxels, scaled as the header says when they are taken."""
    stream.seek(0)
    content, end = io.BytesIO(), end_of_data(header)
    while piece := stream.read(min(_PIECE, end - content.tell())):
        content.write(piece)
    # At the end of its stream gzip compares the checksum.
    further = stream.read(1)
    if missing := end - content.tell():
        raise EOFError(f"{missing} bytes are missing")
    if further:
        raise ValueError("it goes on after its last voxel")
    return ArrayProxy(content, header, mmap=False)


def _volume(path: Path, array: np.ndarray, header: Header) -> Volume:
    return Volume(array.reshape(array.shape[:3]), affine_of(header), path, header)
