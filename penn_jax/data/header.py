"""NIfTI headers, checked before nibabel quietly mends them and before anything trusts them."""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float64
from nibabel.imageglobals import logger
from nibabel.nifti1 import data_type_codes
from nibabel.spatialimages import HeaderDataError, ImageDataError

from penn_jax.data.files import check_file
from penn_jax.types import InputError

Header = nib.Nifti1Header
"""Or its subclass of NIfTI-2."""

LARGEST_BYTES = 2 * 1024**3
"""Voxels of one file, as they lie or as float32, above this are refused: a corrupt header asks for
terabytes."""

SPACINGS = (1e-3, 100.0)
"""Least and greatest voxel size, mm: finer and coarser than anything that is scanned."""

LARGEST_SHEAR = 0.01
"""Cosine between voxel axes; 0 is a right angle, this is a little more than half a degree off."""

_DEFLATE = 1032
"""Most bytes that one byte of a gzip file can hold: a copy of 258 bytes takes two bits."""

_NIFTI2_STARTS = (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
"""540, the size of a NIfTI-2 header, in either byte order."""

_UNREADABLE = (
    *(OSError, EOFError, ValueError, OverflowError, zlib.error),
    *(HeaderDataError, ImageDataError),
)

# What nibabel mends in a header is checked here or harmless. Its own suppressor lets the lines
# through to the handlers of the root logger, which other libraries set.
logger.disabled = True


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The decompressed bytes of a file; whatever fails while they are read names the file.

    Raises:
        InputError: no such file, or one that cannot be read.
    """
    check_file(path)
    try:
        with (
            gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream,
            # What NumPy warns of is checked here or harmless.
            np.errstate(all="ignore"),
        ):
            yield stream
    except _UNREADABLE as error:
        wrong = f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
        raise InputError(path, wrong, "a whole NIfTI file", "copy or export it again") from error


def read_header(path: Path, stream: io.BufferedIOBase) -> Header:
    """Read the header of one volume of one real number a voxel, whose claims can be true.

    Args:
        path: of the file, for the messages.
        stream: its decompressed bytes, at the start.

    Raises:
        InputError: anything else.
        OSError, EOFError, ValueError: the bytes are damaged; ``opened`` tells it.
    """
    start = stream.read(nib.Nifti2Header.sizeof_hdr)
    kind = nib.Nifti2Header if start[:4] in _NIFTI2_STARTS else nib.Nifti1Header
    if len(start) < kind.sizeof_hdr:
        raise EOFError("shorter than a NIfTI header")
    header = kind(start[: kind.sizeof_hdr], check=False)
    if int(header["sizeof_hdr"]) != kind.sizeof_hdr:
        raise InputError(path, "its content is not NIfTI", "a NIfTI file", "export it again")
    if header["magic"].item() == kind.pair_magic:
        remedy = "convert the pair to one .nii.gz"
        raise InputError(path, "is the header of a .hdr and .img pair", "one file", remedy)
    _check_shape(path, header)
    _check_voxel_type(path, header)
    _check_size(path, header, os.fstat(stream.fileno()).st_size)
    _check_spacing(path, header)
    header = kind(start[: kind.sizeof_hdr], check=True)
    _check_affine(path, affine_of(header))
    return header


def shape_of(header: Header) -> tuple[int, ...]:
    """All axes that the header claims, none where it claims an impossible number of them."""
    axes = int(header["dim"][0])
    return tuple(header["dim"][1 : 1 + axes].tolist()) if 0 <= axes <= 7 else ()


def affine_of(header: Header) -> Float64[np.ndarray, "4 4"]:
    """From voxel to mm: sform, else qform, else the voxel sizes."""
    return np.asarray(header.get_best_affine(), np.float64)


def header_of(shape: tuple[int, ...], affine: Float64[np.ndarray, "4 4"], path: Path) -> Header:
    """The header of voxels that come from no NIfTI file.

    Args:
        shape: of the volume.
        affine: from voxel to mm.
        path: where the voxels are from, for the message.

    Raises:
        InputError: the affine is not that of a usable volume.
    """
    _check_affine(path, affine)
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    header.set_xyzt_units("mm")
    return header


def end_of_data(header: Header) -> int:
    """Byte after the last voxel."""
    return int(header["vox_offset"]) + math.prod(shape_of(header)) * _voxel_type(header).itemsize


def _voxel_type(header: Header) -> np.dtype:
    return np.dtype(data_type_codes.dtype[int(header["datatype"])])  # type: ignore[arg-type]


def _check_shape(path: Path, header: Header) -> None:
    shape = shape_of(header)
    if len(shape) < 3 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
        remedy = "split a series into files of one volume each"
        raise InputError(path, f"its shape is {shape}", "one volume of three axes", remedy)


def _check_voxel_type(path: Path, header: Header) -> None:
    code = int(header["datatype"])
    if code not in data_type_codes.dtype or _voxel_type(header).kind not in "iuf":
        label = data_type_codes.label.get(code, f"of unknown type {code}")
        remedy = "convert it to a scalar type"
        raise InputError(path, f"its voxels are {label}", "one real number a voxel", remedy)


def _check_size(path: Path, header: Header, there: int) -> None:
    """Compare the claim with what can be worked with, and with the bytes that are there."""
    end = end_of_data(header)
    claim = max(end, math.prod(shape_of(header)) * np.dtype(np.float32).itemsize)
    if claim > LARGEST_BYTES:
        wrong = f"its header claims {claim / 1024**3:.1f} GiB"
        expected = f"at most {LARGEST_BYTES / 1024**3:g} GiB"
        raise InputError(path, wrong, expected, "check the header or crop the volume")
    packed = path.name.endswith(".gz")
    # nibabel would take the header itself for voxels.
    if (start := int(header["vox_offset"])) < header.single_vox_offset:
        raise ValueError(f"its voxels start at byte {start}, in the header")
    if packed and end > there * _DEFLATE:
        raise EOFError(f"its header claims {end} bytes, which cannot lie in {there} of gzip")
    if not packed and end > there:
        raise EOFError(f"{end - there} bytes are missing")
    if not packed and end < there:
        raise ValueError(f"{there - end} bytes too many")


def _check_spacing(path: Path, header: Header) -> None:
    zooms = header["pixdim"][1:4].tolist()
    if not all(0 < zoom < math.inf for zoom in zooms):
        wrong = f"its voxels measure {' × '.join(f'{zoom:g}' for zoom in zooms)}"
        raise InputError(path, wrong, "positive voxel sizes", "correct pixdim in the header")
    if unit := {1: "metre", 3: "micrometre"}.get(int(header["xyzt_units"]) % 8):
        raise InputError(path, f"its unit of length is {unit}", "mm", "convert the header to mm")


def _check_affine(path: Path, affine: Float64[np.ndarray, "4 4"]) -> None:
    remedy = "correct qform and sform in the header"
    expected = "an invertible affine of right angles"
    if not np.isfinite(affine).all():
        raise InputError(path, "its affine is not finite", expected, remedy)
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if lengths.min() <= 0:
        raise InputError(path, "its affine is singular", expected, remedy)
    if lengths.min() < SPACINGS[0] or lengths.max() > SPACINGS[1]:
        wrong = f"its voxels measure {' × '.join(f'{length:g}' for length in lengths)} mm"
        raise InputError(path, wrong, f"{SPACINGS[0]:g} to {SPACINGS[1]:g} mm", remedy)
    axes = affine[:3, :3] / lengths
    cosine = np.abs(axes.T @ axes - np.eye(3)).max()
    if cosine > LARGEST_SHEAR:
        angle = np.degrees(np.arccos(min(1.0, cosine)))
        wrong = "its affine is singular" if angle < 1 else f"its axes meet at {angle:.1f} degrees"
        raise InputError(path, wrong, expected, "resample it to an unsheared grid")
