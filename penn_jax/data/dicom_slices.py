"""Files of a folder as DICOM slices: where each lies, and its pixels.

Only the tags named here are read, so that nothing that tells who was scanned ever reaches the
memory, a message or a log. ``dicom_seg.py`` alone asks for whole headers: a segmentation object
must carry its patient's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Real

from penn_jax.data.files import check_inside
from penn_jax.types import InputError

_MAGIC = b"DICM"
_PREAMBLE = 128
_ENDINGS = (".dcm", ".ima")
_NO_SCANS = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTDOSE", "RTPLAN", "REG", "DOC")
"""Modalities of objects that archives put beside the slices."""

_DIRECTORY = "1.2.840.10008.1.3.10"
"""Class of a DICOMDIR."""

_WHERE = (
    *("SeriesInstanceUID", "SeriesNumber", "Modality", "FrameOfReferenceUID", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SpacingBetweenSlices", "SliceThickness", "RescaleSlope", "RescaleIntercept"),
)
_PIXELS = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames"),
    *("PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)


@dataclass(frozen=True, eq=False)
class Slice:
    """One file: what leads from its pixels to a place and an intensity."""

    path: Path
    series: str
    number: str
    modality: str
    frame_of_reference: str
    frames: int
    samples: int
    photometric: str
    compression: str
    """Of the pixels, by name; empty where there is none."""
    shape: tuple[int, int]
    """Rows, columns."""
    position: Float64[np.ndarray, "3"]
    """Centre of the first pixel, mm, in DICOM's axes."""
    orientation: Float64[np.ndarray, "2 3"]
    """Directions along a row and along a column."""
    spacing: Float64[np.ndarray, "2"]
    """Between columns and between rows, mm."""
    thickness: float
    slope: float
    intercept: float


def check_installed(wanted: str) -> None:
    """Make sure that the packages for DICOM are there.

    Raises:
        InputError: they are not.
    """
    try:
        import highdicom  # noqa: F401
        from pydicom import config
    except ImportError as error:
        raise InputError(
            wanted, "DICOM needs pydicom and highdicom", "both", "pip install 'penn-jax[dicom]'"
        ) from error
    # Both warn of values that do not conform by quoting them, and a name may be among them.
    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def is_series(folder: Path) -> bool:
    """Whether a folder holds a DICOM file, whatever its name is; needs no further package."""
    return folder.is_dir() and any(_is_dicom(path) for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.name[0] != "." and path.is_file())


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC


def read_tags(path: Path, tags: Sequence[str] | None, pixels: bool = False) -> Any:
    """A data set with some of its tags, or with all but the pixels."""
    import pydicom

    try:
        wanted = None if tags is None else list(tags)
        return pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=wanted)
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    # Damaged bytes make pydicom raise anything, and its words may quote any tag: only the kind of
    # the error is told.
    wrong = f"cannot be read ({type(error).__name__})"
    return InputError(path, wrong, "a whole DICOM file", "copy or export it again")


def read_slices(folder: Path) -> list[Slice]:
    """Where the slices of a folder lie, in the order of its files.

    Raises:
        InputError: pydicom is not installed; a file is damaged or no slice in space.
    """
    check_installed(str(folder))
    found = []
    for path in _files(folder):
        check_inside(path, folder)
        if not _is_dicom(path):
            if path.suffix.lower() in _ENDINGS or not path.stat().st_size:
                wrong = "its content is not DICOM"
                raise InputError(path, wrong, "a DICOM slice", "copy it again or remove it")
            continue
        one = _slice(path, read_tags(path, _WHERE))
        if one is not None:
            found.append(one)
    return found


def _slice(path: Path, data: Any) -> Slice | None:
    """What the tags say of a slice; None where they are not of one."""

    def numbers(name: str, shape: tuple[int, ...], other: float | None = None) -> np.ndarray:
        value = data.get(name)
        if value is None or value == "":
            if other is None:
                remedy = "export the original slices, or convert them to NIfTI"
                raise InputError(path, f"has no {name}", "the tags of a slice in space", remedy)
            value = other
        return np.asarray(value, np.float64).reshape(shape)

    try:
        index = data.file_meta.get("MediaStorageSOPClassUID") == _DIRECTORY
        if index or data.get("Modality") in _NO_SCANS:
            return None
        syntax = data.file_meta.get("TransferSyntaxUID")
        between = float(numbers("SliceThickness", (), 1.0))
        return Slice(
            path=path,
            series=str(data.get("SeriesInstanceUID") or ""),
            number=str(data.get("SeriesNumber") or ""),
            modality=str(data.get("Modality") or ""),
            frame_of_reference=str(data.get("FrameOfReferenceUID") or ""),
            compression=syntax.name if syntax is not None and syntax.is_compressed else "",
            frames=int(numbers("NumberOfFrames", (), 1.0)),
            samples=int(numbers("SamplesPerPixel", (), 1.0)),
            photometric=str(data.get("PhotometricInterpretation") or "MONOCHROME2"),
            shape=(int(numbers("Rows", ())), int(numbers("Columns", ()))),
            position=numbers("ImagePositionPatient", (3,)),
            orientation=numbers("ImageOrientationPatient", (2, 3)),
            # Between rows first, in the file.
            spacing=numbers("PixelSpacing", (2,))[::-1],
            thickness=float(numbers("SpacingBetweenSlices", (), between)),
            slope=float(numbers("RescaleSlope", (), 1.0)),
            intercept=float(numbers("RescaleIntercept", (), 0.0)),
        )
    except InputError:
        raise
    except Exception as error:
        raise _damaged(path, error) from None


def read_pixels(one: Slice) -> Real[np.ndarray, "rows columns"]:
    """The pixels of a slice, as they are stored.

    Raises:
        InputError: they are damaged, or of a compression that cannot be unpacked.
    """
    data = read_tags(one.path, _PIXELS, pixels=True)
    try:
        pixels = data.pixel_array
    except Exception as error:
        if not one.compression:
            raise _damaged(one.path, error) from None
        wrong = f"its pixels ({one.compression}) cannot be unpacked"
        remedy = "copy it again, or pip install python-gdcm, which unpacks more kinds"
        raise InputError(one.path, wrong, "a kind that pydicom unpacks", remedy) from None
    if pixels.shape != one.shape:
        raise _damaged(one.path, ValueError())
    return pixels
