"""NIfTI files: read with every doubt raised, written with the geometry of another.

The only module that knows nibabel. A file is read whole, once, in memory: what its header claims
is checked before anything of that size is allocated, and its gzip checksum after.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float, Float64, Real, UInt8
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.nifti1 import data_type_codes
from nibabel.spatialimages import HeaderDataError, ImageDataError

from penn_jax.data.grid import FrameGrid, plan_frames
from penn_jax.types import InputError

LARGEST_BYTES = 2 * 1024**3
"""Voxel data of one file above this is refused: a corrupt header asks for terabytes."""

LARGEST_SHEAR = 0.01
"""Cosine between voxel axes; 0 is a right angle, this is a little more than half a degree off."""

ENDINGS = (".nii.gz", ".nii")

_GEOMETRY = (
    *("dim", "pixdim", "dim_info", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
"""Fields of a NIfTI header that say where the voxels lie, and no more."""

_NIFTI2_STARTS = (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
"""540, the size of a NIfTI-2 header, in either byte order."""

_UNREADABLE = (
    *(OSError, EOFError, ValueError, OverflowError, zlib.error),
    *(HeaderDataError, ImageDataError),
)


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie in the scanner's space."""

    array: np.ndarray
    """Image: float32 (X, Y, Z, C). Labels: uint8 (X, Y, Z)."""
    affine: Float64[np.ndarray, "4 4"]
    """(4, 4), from voxel to mm."""
    _header: nib.Nifti1Header = field(repr=False)

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
    """
    orientation = nib.orientations.io_orientation(volume.affine)
    return plan_frames(volume.array.shape[:3], volume.affine, orientation, dimensions, spacing)


def read_image(paths: Sequence[Path]) -> Volume:
    """Read one image, a file for each channel, all on one grid.

    Args:
        paths: at least one ``.nii.gz`` or ``.nii``, three axes, or more if the rest are of size 1.

    Returns:
        float32 (X, Y, Z, C), scaled as the header says.

    Raises:
        InputError: a file cannot be read, is not a finite varying scalar image, or does not share
            the first file's grid.
    """
    volumes = [_read_channel(Path(path)) for path in paths]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        check_same_grid(path, volume, paths[0], volumes[0])
    array = np.stack([volume.array for volume in volumes], axis=-1)
    return Volume(array, volumes[0].affine, volumes[0]._header)


def _read_channel(path: Path) -> Volume:
    with _opened(path) as stream:
        image = _load(path, stream)
        array = np.asarray(image.get_fdata(caching="unchanged", dtype=np.float32))
    if broken := array.size - np.count_nonzero(np.isfinite(array)):
        wrong = f"{broken} voxels are NaN, infinite or beyond float32"
        raise InputError(path, wrong, "finite intensities", "repair it or leave the case out")
    if array.min() == array.max():
        wrong = f"every voxel is {array.flat[0]:g}"
        raise InputError(path, wrong, "an image with contrast", "check how it was exported")
    return _volume(array, image.header)


def read_labels(path: Path) -> Volume:
    """Read a label map.

    Args:
        path: ``.nii.gz`` or ``.nii``; of any real type as long as the values are whole numbers.

    Returns:
        uint8 (X, Y, Z).

    Raises:
        InputError: the file cannot be read, or a value is not a whole number of 0 to 255.
    """
    with _opened(path) as stream:
        image = _load(path, stream)
        array = np.asarray(image.dataobj)
    expected = "whole numbers of 0 to 255"
    if (fractions := array[array != np.trunc(array)]).size:
        wrong = f"label {fractions[0]:g} is not a whole number"
        raise InputError(path, wrong, expected, "export it again without interpolation")
    if array.min() < 0 or array.max() > 255:
        wrong = f"labels run from {array.min():g} to {array.max():g}"
        raise InputError(path, wrong, expected, "renumber the labels")
    return _volume(array.astype(np.uint8), image.header)


def read_geometry(path: Path) -> Volume:
    """Read only where the voxels lie: a volume whose array has the shape but holds no data.

    Args:
        path: ``.nii.gz`` or ``.nii``.

    Returns:
        An array of zeros that takes no memory, the affine and the header.

    Raises:
        InputError: the header is not that of a usable scalar image.
    """
    with _opened(path) as stream:
        header = _read_header(path, stream)
    return _volume(np.broadcast_to(np.uint8(0), header.get_data_shape()), header)


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


def _write(path: Path, array: np.ndarray, like: Volume) -> None:
    header = type(like._header)()
    for name in _GEOMETRY:
        header[name] = like._header[name]
    header.set_data_dtype(array.dtype)
    _write_whole(path, _image_kind(header)(array, None, header))


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
        # No name and no time in the gzip header: the same image is the same bytes.
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
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


def _volume(array: np.ndarray, header: nib.Nifti1Header) -> Volume:
    return Volume(array.reshape(array.shape[:3]), _affine(header), header)


def _affine(header: nib.Nifti1Header) -> np.ndarray:
    return np.asarray(header.get_best_affine(), np.float64)


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The decompressed bytes of a file; whatever fails while they are read names the file."""
    if not path.name.endswith(ENDINGS):
        raise InputError(path, "not a NIfTI name", ".nii.gz or .nii", "convert it to NIfTI")
    if not path.is_file():
        raise InputError(path, "no such file", "a NIfTI file", "check the path")
    try:
        with (
            gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream,
            # What nibabel mends in a header, or NumPy warns of, is checked here or harmless.
            LoggingOutputSuppressor(),
            np.errstate(all="ignore"),
        ):
            yield stream
    except _UNREADABLE as error:
        wrong = f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
        raise InputError(path, wrong, "a whole NIfTI file", "copy or export it again") from error


def _load(path: Path, stream: io.BufferedIOBase) -> nib.Nifti1Image:
    header = _read_header(path, stream)
    end = _end_of_data(header)
    stream.seek(0)
    content = stream.read(end)
    stream.read(1)  # at the end of its stream gzip compares the checksum
    if len(content) < end:
        raise EOFError(f"{end - len(content)} bytes are missing")
    return _image_kind(header).from_bytes(content)


def _read_header(path: Path, stream: io.BufferedIOBase) -> nib.Nifti1Header:
    """Check a header before nibabel quietly mends it, and before anything trusts its sizes."""
    start = stream.read(nib.Nifti2Header.sizeof_hdr)
    kind = nib.Nifti2Header if start[:4] in _NIFTI2_STARTS else nib.Nifti1Header
    if len(start) < kind.sizeof_hdr:
        raise EOFError("shorter than a NIfTI header")
    header = kind(start[: kind.sizeof_hdr], check=False)
    if int(header["sizeof_hdr"]) != kind.sizeof_hdr:
        raise InputError(path, "its content is not NIfTI", "a NIfTI file", "export it again")
    shape = _shape(header)
    if len(shape) < 3 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
        remedy = "split a series into files of one volume each"
        raise InputError(path, f"its shape is {shape}", "one volume of three axes", remedy)
    code = int(header["datatype"])
    if code not in data_type_codes.dtype or _voxel_type(header).kind not in "iuf":
        label = data_type_codes.label.get(code, f"of unknown type {code}")
        remedy = "convert it to a scalar type"
        raise InputError(path, f"its voxels are {label}", "one real number a voxel", remedy)
    if (end := _end_of_data(header)) > LARGEST_BYTES:
        wrong = f"its header claims {end / 1024**3:.1f} GiB"
        expected = f"at most {LARGEST_BYTES / 1024**3:g} GiB"
        raise InputError(path, wrong, expected, "check the header or crop the volume")
    zooms = header["pixdim"][1:4].tolist()
    if not all(0 < zoom < math.inf for zoom in zooms):
        wrong = f"its voxels measure {' × '.join(f'{zoom:g}' for zoom in zooms)}"
        raise InputError(path, wrong, "positive voxel sizes", "correct pixdim in the header")
    header = kind(start[: kind.sizeof_hdr], check=True)
    if unit := {1: "metre", 3: "micrometre"}.get(int(header["xyzt_units"]) % 8):
        raise InputError(path, f"its unit of length is {unit}", "mm", "convert the header to mm")
    _check_affine(path, _affine(header))
    return header


def _check_affine(path: Path, affine: np.ndarray) -> None:
    remedy = "correct qform and sform in the header"
    expected = "an invertible affine of right angles"
    if not np.isfinite(affine).all():
        raise InputError(path, "its affine is not finite", expected, remedy)
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if lengths.min() <= 0:
        raise InputError(path, "its affine is singular", expected, remedy)
    axes = affine[:3, :3] / lengths
    cosine = np.abs(axes.T @ axes - np.eye(3)).max()
    if cosine > LARGEST_SHEAR:
        angle = np.degrees(np.arccos(min(1.0, cosine)))
        wrong = "its affine is singular" if angle < 1 else f"its axes meet at {angle:.1f} degrees"
        raise InputError(path, wrong, expected, "resample it to an unsheared grid")


def _shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    axes = min(7, max(0, int(header["dim"][0])))
    return tuple(header["dim"][1 : 1 + axes].tolist())


def _voxel_type(header: nib.Nifti1Header) -> np.dtype:
    return np.dtype(data_type_codes.dtype[int(header["datatype"])])  # type: ignore[arg-type]


def _end_of_data(header: nib.Nifti1Header) -> int:
    return int(header["vox_offset"]) + math.prod(_shape(header)) * _voxel_type(header).itemsize


def _image_kind(header: nib.Nifti1Header) -> type[nib.Nifti1Image]:
    return nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
