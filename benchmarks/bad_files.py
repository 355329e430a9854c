"""Bad NIfTI files, and the means to make more of them, for ``bad_inputs.py``."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

SHAPE = (12, 14, 4)
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])
GIGABYTES = (1000, 1000, 510)
"""1.9 GiB as float32, which is less than any one file may have."""


def image(seed: int = 0, shape: Sequence[int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def label(value: float = 1, shape: Sequence[int] = SHAPE, dtype: Any = np.uint8) -> np.ndarray:
    array = np.zeros(shape, dtype)
    array[2:5, 3:6, 1:3] = value
    return array


def holding(value: float) -> np.ndarray:
    array = image(1).astype(np.float64)
    array[3, 3, 1] = value
    return array


def nifti(array: np.ndarray, affine: np.ndarray = AFFINE, kind: Any = nib.Nifti1Image, **fields):
    """The bytes of a file, some fields of its header overwritten past all checks."""
    made = kind(array, affine)
    content = bytearray(made.to_bytes())
    size = made.header.sizeof_hdr
    header = type(made.header)(bytes(content[:size]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:size] = header.binaryblock
    return bytes(content)


def put(path: Path, content: bytes) -> Path:
    """Write, compressed if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".gz"):
        content = gzip.compress(content, 1, mtime=0)
    path.write_bytes(content)
    return path


def raw_bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def nifti_with(array: np.ndarray | None = None, **fields: Any) -> Callable[[Path], object]:
    return lambda path: put(path, nifti(image(1) if array is None else array, **fields))


def sheared() -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 1] = 1.0
    return affine


def claiming(shape: Sequence[int], **fields: Any) -> bytes:
    return nifti(image(1), dim=[3, *shape, 1, 1, 1, 1], **fields)


def zeros(count: int) -> bytes:
    """A gzip stream of so many zeros, a thousand times smaller: one piece over and over."""
    piece = 32 * 1024**2
    return gzip.compress(bytes(piece), 9) * (count // piece) + gzip.compress(bytes(count % piece))


def bomb(path: Path) -> None:
    """All the voxels that the header claims are there."""
    header = claiming(GIGABYTES)[:352]
    path.write_bytes(gzip.compress(header) + zeros(4 * int(np.prod(GIGABYTES))))


def long_tail(path: Path) -> None:
    """A small image, and gigabytes after its last voxel."""
    path.write_bytes(gzip.compress(nifti(image(1))) + zeros(2 * 1024**3))


def damaged(change: Callable[[bytearray], object], ending: str = ".nii.gz"):
    def make(path: Path) -> None:
        put(path, nifti(image(1)))
        content = bytearray(path.read_bytes())
        changed = change(content)
        path.write_bytes(bytes(changed if isinstance(changed, bytearray) else content))

    return make


def flip(place: int) -> Callable[[bytearray], object]:
    def change(content: bytearray) -> None:
        content[place] ^= 0x40

    return change


def link_to(target: object) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(str(target))


def link_out(path: Path) -> None:
    """To a scan beside the folder that is given, be it ``in/`` or ``raw/``."""
    outside = path.parents[1 if path.parent.name == "in" else 2] / "elsewhere.nii.gz"
    put(outside, nifti(image(1)))
    path.symlink_to(outside)


def write(path: Path, content: Any) -> Path:
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def label_bomb(path: Path) -> None:
    header = nifti(label(), dim=[3, 1000, 1000, 510, 1, 1, 1, 1])[:352]
    path.write_bytes(gzip.compress(header) + zeros(510_000_000))


def labels_of(value: float) -> Callable[[Path], object]:
    return nifti_with(label(value, dtype=np.float32))


class BadScan(NamedTuple):
    name: str
    make: Callable[[Path], object]
    said: str
    ending: str = ".nii.gz"


BAD_SCANS = (
    BadScan("NaN", nifti_with(holding(np.nan)), "1 voxels are NaN, infinite"),
    BadScan("infinite", nifti_with(holding(np.inf)), "1 voxels are NaN, infinite"),
    BadScan("beyond float32", nifti_with(holding(1e300)), "beyond float32"),
    BadScan("infinite intercept", nifti_with(scl_slope=1, scl_inter=np.inf), "cannot be read"),
    BadScan("constant", nifti_with(np.full(SHAPE, 7.0)), "every voxel is 7"),
    BadScan("complex", nifti_with(image(1).astype(np.complex64)), "voxels are complex64"),
    BadScan("RGB", nifti_with(np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "are RGB"),
    BadScan("unknown datatype", nifti_with(datatype=999), "unknown type 999"),
    BadScan("series of 3", nifti_with(image(1, (*SHAPE, 3))), r"shape is \(12, 14, 4, 3\)"),
    BadScan("plane", nifti_with(image(1, (12, 14))), r"shape is \(12, 14\)"),
    BadScan("no voxels", nifti_with(dim=[3, 12, 14, 0, 1, 1, 1, 1]), r"shape is \(12, 14, 0\)"),
    BadScan("negative size", nifti_with(dim=[3, 12, -14, 4, 1, 1, 1, 1]), r"\(12, -14, 4\)"),
    BadScan("no axes", nifti_with(dim=[0, 12, 14, 4, 1, 1, 1, 1]), r"shape is \(\)"),
    BadScan("sizeof_hdr", nifti_with(sizeof_hdr=0), "content is not NIfTI"),
    BadScan("magic", nifti_with(magic=b"abc"), "cannot be read"),
    BadScan("half of a pair", nifti_with(magic=b"ni1", vox_offset=0), r"\.hdr and \.img"),
    BadScan("voxels in the header", nifti_with(vox_offset=0), "start at byte 0, in the header"),
    BadScan("voxels nowhere", nifti_with(vox_offset=np.nan), "cannot be read"),
    BadScan("voxels far off", nifti_with(vox_offset=1e30), "header claims"),
    BadScan("zero spacing", nifti_with(pixdim=[1, 2, 0, 5, 1, 1, 1, 1]), "measure 2 × 0 × 5"),
    BadScan("negative spacing", nifti_with(pixdim=[1, 2, 2, -5, 1, 1, 1, 1]), "2 × 2 × -5"),
    BadScan("NaN spacing", nifti_with(pixdim=[1, np.nan, 2, 5, 1, 1, 1, 1]), "measure nan × 2"),
    BadScan("kilometres", nifti_with(affine=np.diag([2, 2, 1e6, 1])), "measure 2 × 2 × 1e.06 mm"),
    BadScan(
        "900 mm", nifti_with(affine=np.diag([900.0, 900, 900, 1])), "measure 900 × 900 × 900 mm"
    ),
    BadScan("metres", nifti_with(xyzt_units=1), "unit of length is metre"),
    BadScan("singular affine", nifti_with(srow_x=[0, 0, 0, 0]), "affine is singular"),
    BadScan("NaN affine", nifti_with(srow_x=[np.nan, 0, 0, 0]), "affine is not finite"),
    BadScan("sheared affine", nifti_with(affine=sheared()), "axes meet at 63.4 degrees"),
    BadScan(
        "impossible rotation",
        nifti_with(sform_code=0, qform_code=1, quatern_b=5, quatern_c=5),
        "cannot be read",
    ),
    BadScan(
        "terabytes, packed", lambda p: put(p, claiming((32767, 32767, 32767))), "claims 131060.0"
    ),
    BadScan(
        "terabytes", lambda p: put(p, claiming((32767, 32767, 32767))), "claims 131060.0", ".nii"
    ),
    BadScan("1.9 GiB, packed", lambda p: put(p, claiming(GIGABYTES)), "cannot lie in .* of gzip"),
    BadScan("1.9 GiB", lambda p: put(p, claiming(GIGABYTES)), "bytes are missing", ".nii"),
    BadScan(
        "more bytes than 63 bits count",
        lambda p: put(p, nifti(image(1), kind=nib.Nifti2Image, dim=[3, *[2**40] * 3, 1, 1, 1, 1])),
        "header claims .* GiB",
    ),
    BadScan("gzip bomb", bomb, "(?:are packed 1... times smaller|; resample it)"),
    BadScan("gigabytes after the voxels", long_tail, "goes on after its last voxel"),
    BadScan("truncated gzip", damaged(lambda c: c[: len(c) // 2]), "cannot be read"),
    BadScan("no checksum", damaged(lambda c: c[:-8]), "cannot be read"),
    BadScan("wrong checksum", damaged(flip(-6)), "CRC check failed"),
    BadScan("flipped byte", damaged(flip(900)), "cannot be read"),
    BadScan("garbage after gzip", damaged(lambda c: c + b"garbage"), "cannot be read"),
    BadScan("bytes after the voxels", lambda p: put(p, nifti(image(1)) + b"more"), "goes on after"),
    BadScan("fewer voxels", lambda p: put(p, nifti(image(1))[:-9]), "9 bytes are missing"),
    BadScan("truncated", damaged(lambda c: c[:-9]), "9 bytes are missing", ".nii"),
    BadScan("trailing garbage", damaged(lambda c: c + b"more"), "4 bytes too many", ".nii"),
    BadScan("header cut off", damaged(lambda c: c[:200]), "shorter than a NIfTI", ".nii"),
    BadScan("not gzip", raw_bytes(b"this is a text and no scan" * 40), "Not a gzipped file"),
    BadScan("not compressed", raw_bytes(nifti(image(1))), "Not a gzipped file"),
    BadScan("compressed", raw_bytes(gzip.compress(nifti(image(1)))), "is not NIfTI", ".nii"),
    BadScan("text, packed", lambda p: put(p, b"this is no scan" * 80), "content is not NIfTI"),
    BadScan("text", raw_bytes(b"this is a text and no scan" * 40), "is not NIfTI", ".nii"),
    BadScan("empty", raw_bytes(b""), "shorter than a NIfTI", ".nii"),
    BadScan("empty, packed", raw_bytes(b""), "cannot be read"),
    BadScan("folder", Path.mkdir, "a folder, expected a NIfTI file"),
    BadScan("pipe", os.mkfifo, "a pipe or device, expected a NIfTI file"),
    BadScan("device", link_to("/dev/zero"), "a link to /dev/zero, which is no file"),
    BadScan("link to nothing", link_to("nowhere.nii.gz"), "a link to nowhere.nii.gz, which is no"),
    BadScan("loop of links", lambda p: p.symlink_to(p.name), "a link to b.nii.gz, which is no"),
    BadScan("link out of the folder", link_out, "a link to .*elsewhere.nii.gz, expected a file in"),
)
SCANS = {scan.name: scan for scan in BAD_SCANS}
