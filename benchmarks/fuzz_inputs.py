"""Inputs of the fuzzer: small sound files of each kind, and mutations of them.

Every choice is drawn from a ``random.Random`` that the caller gives: a seeded one, or hypothesis's.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

LARGEST_INPUT = 1 << 16
"""Bytes, before compression."""

# Seeds ------------------------------------------------------------------------------------------


def nifti_seeds() -> list[bytes]:
    """Sound files: types, scalings, orientations, both formats and byte orders, one of 4 axes."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 4, (5, 4, 3))
    plain = np.diag([1.0, 1.5, 4.0, 1.0])
    turned = np.array([[0, 0, 4, 0], [0, -1, 0, 9], [-1, 0, 0, 3], [0, 0, 0, 1]], float)
    oblique = plain.copy()
    oblique[:2, :2] = [[0.8, -0.9], [0.6, 1.2]]
    kinds = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
    images = [nib.Nifti1Image(voxels, plain, dtype=np.dtype(kind)) for kind in kinds]
    images += [
        nib.Nifti1Image(voxels.astype("i2"), turned),
        nib.Nifti1Image(voxels[..., None].astype("f4"), oblique),
        nib.Nifti1Image(voxels.astype("i2"), plain, nib.Nifti1Header(endianness=">")),
        nib.Nifti2Image(voxels.astype("u2"), turned),
        nib.Nifti2Image(voxels.astype("f4"), plain, nib.Nifti2Header(endianness=">")),
        nib.Nifti1Image(np.kron(voxels, np.ones((4, 4, 4))).astype("u1"), oblique),
    ]
    images[2].header.set_slope_inter(2.0, 1.0)
    images[9].header.set_slope_inter(3.0, 0.0)
    images[3].set_qform(plain, code=1)
    images[3].set_sform(None, code=0)
    images[4].header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"of no matter"))
    return [image.to_bytes() for image in images]


def raw_folder(root: Path) -> Path:
    """A small nnU-Net raw folder with a test case, splits and two channels."""
    rng = np.random.default_rng(0)
    for part, names in (("Tr", "abc"), ("Ts", "t")):
        for folder in (f"images{part}", f"labels{part}"):
            (root / folder).mkdir(parents=True)
        for name in names:
            affine = np.diag([1.0, 1.5, 4.0, 1.0])
            for channel in range(2):
                scan = rng.integers(0, 99, (6, 5, 4)).astype("i2")
                file = root / f"images{part}/{name}_{channel:04d}.nii.gz"
                nib.Nifti1Image(scan, affine).to_filename(file)
            if part == "Tr":
                labels = rng.integers(0, 3, (6, 5, 4)).astype("u1")
                nib.Nifti1Image(labels, affine).to_filename(root / f"labelsTr/{name}.nii.gz")
    described = {
        "channel_names": {"0": "T1", "1": "T1Gd"},
        "labels": {"background": 0, "bone": 1, "tumour": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    splits = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    (root / "dataset.json").write_text(json.dumps(described))
    (root / "splits_final.json").write_text(json.dumps(splits))
    return root


# Mutations --------------------------------------------------------------------------------------

_EDGES = [2**bits + off for bits in (15, 16, 31, 32, 63) for off in (-1, 0)]
_WHOLE = (*range(9), 16, 64, 127, 128, 255, 256, 348, 352, 540, *_EDGES, *(-n for n in _EDGES), -1)
_REAL = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 1e-7, 1e-3, 1e3, 1e7, 1e19, 3e38, -3e38, 1e308)
_ODD = (float("nan"), float("inf"), -float("inf"))


def mutate_nifti(rng: random.Random, seed: bytes, other: bytes) -> bytes:
    """One to four changes of an uncompressed file: header fields by preference, or bytes.

    Args:
        rng: source of every choice.
        seed: the file.
        other: another one, to splice with.
    """
    content = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.7:
            _set_field(rng, content)
        else:
            content = mutate_bytes(rng, content, other)
    return bytes(content)


def _set_field(rng: random.Random, content: bytearray) -> None:
    order = ">" if content[:1] == b"\0" else "<"
    two = content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    fields = (nib.Nifti2Header if two else nib.Nifti1Header).template_dtype.newbyteorder(order)
    name = rng.choice(fields.names)
    kind, offset = fields.fields[name][:2]
    base = kind.base
    place = offset + base.itemsize * rng.randrange(max(1, kind.itemsize // base.itemsize))
    if base.kind == "S":
        value = rng.randbytes(base.itemsize)
    elif base.kind == "f":
        with np.errstate(all="ignore"):
            value = np.array(rng.choice(_REAL + _ODD)).astype(base).tobytes()
    else:
        size = 8 * base.itemsize
        number = rng.choice(_WHOLE) if rng.random() < 0.8 else rng.getrandbits(size)
        value = (number % 2**size).to_bytes(base.itemsize, "big" if order == ">" else "little")
    content[place : place + len(value)] = value


def mutate_bytes(
    rng: random.Random, content: bytes | bytearray, other: bytes | bytearray
) -> bytearray:
    """One change that knows nothing of the format: flip, cut, insert, repeat, fill or splice."""
    content = bytearray(content)
    start, stop = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    short = min(stop, start + rng.randint(1, 16))
    match rng.randrange(8):
        case 0:
            for place in range(start, short):
                content[place] ^= 1 << rng.randrange(8)
        case 1:
            content[start:short] = rng.randbytes(short - start)
        case 2:
            del content[start:]
        case 3:
            del content[start:short]
        case 4:
            content[start:start] = rng.randbytes(rng.randint(1, 16))
        case 5:
            content[start:start] = content[start:stop]
        case 6:
            content[start:short] = bytes([rng.choice((0, 255))]) * (short - start)
        case 7:
            content[start:] = other[rng.randrange(len(other) + 1) :]
    return content[:LARGEST_INPUT]


def compress(rng: random.Random, content: bytes) -> bytes:
    """The bytes as gzip, three times in four sound, else damaged in a way of gzip's own."""
    packed = bytearray(gzip.compress(content, compresslevel=1, mtime=0))
    match rng.randrange(24):
        case 0:
            packed = mutate_bytes(rng, packed, packed)
        case 1:
            packed[-8:-4] = struct.pack("<I", zlib.crc32(content) ^ 1)
        case 2:
            packed[-4:] = struct.pack("<I", rng.getrandbits(32))
        case 3:
            packed += rng.randbytes(rng.randint(1, 40))
        case 4:
            half = rng.randrange(len(content) + 1)
            packed = bytearray(gzip.compress(content[:half]) + gzip.compress(content[half:]))
        case 5:
            packed[rng.randrange(10)] = rng.randrange(256)
    return bytes(packed)


_NAMES = ("", "a", "0", "1", "255", "background", "ignore", "../a", "[/b]", "é", "a\nb", "\0")
_VALUES = (*_NAMES, None, True, False, *_WHOLE, *_REAL, *_ODD, 10**400, [], {}, [[]], [0], {"a": 0})


def mutate_json(rng: random.Random, seed: bytes, other: bytes) -> bytes:
    """One to three changes of a JSON file: of its values, or of its bytes.

    Args:
        rng: source of every choice.
        seed: the file.
        other: another one, to splice with.
    """
    try:
        holder = [json.loads(seed)]
        for _ in range(rng.randint(1, 3)):
            _change_value(rng, holder)
        text = json.dumps(holder[0], indent=rng.choice((None, 1)), ensure_ascii=rng.random() < 0.5)
        content = text.encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        content = seed
    match rng.randrange(20):
        case 0 | 1:
            content = mutate_bytes(rng, content, other)
        case 2:
            place, depth = rng.randrange(len(content) + 1), rng.choice((10, 150, 250, 990, 5000))
            opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
            nested = opening * depth + b"1" + closing * rng.choice((0, depth))
            content = content[:place] + nested + content[rng.choice((place, len(content))) :]
        case 3:
            digits = rng.choice(
                (b"1e400", b"-1e-400", b"9" * 4000, b"9" * 5000, b"NaN", b"0x1", b"01")
            )
            content = re.sub(rb"\d+", lambda _: digits, content, count=1)
        case 4:
            # A key twice: the first member of an object is repeated with another value.
            content = re.sub(rb'\{\s*("[^"]*"):', rb"{\1: 0, \1:", content, count=rng.randint(0, 2))
        case 5:
            word = rng.choice((b"\\ud800", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\u0000"))
            place = rng.randrange(len(content) + 1)
            content = content[:place] + word + content[place:]
        case 6 if rng.random() < 0.2:
            content = content.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32")))
    return bytes(content[:LARGEST_INPUT])


def _change_value(rng: random.Random, holder: list[Any]) -> None:
    """Change one place of a JSON value, which is the only item of ``holder``."""
    parent, key = holder, 0
    while isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.95:
        parent = parent[key]
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    match rng.randrange(6):
        case 0 | 1 | 2:
            # A copy: the next change may be inside of it.
            parent[key] = copy.deepcopy(rng.choice(_VALUES))
        case 3 if parent is not holder:
            del parent[key]
        case 4 if isinstance(parent, dict):
            name = rng.choice((*_NAMES, *parent))
            parent[name] = parent.pop(key) if rng.random() < 0.5 else parent[key]
        case 5 if isinstance(parent, list) and parent is not holder:
            parent.insert(rng.randrange(len(parent) + 1), parent[key])
        case _:
            value = parent[key]
            if type(value) in (int, float):
                parent[key] = rng.choice((value - 1, value + 1, -value, 2 * value, str(value)))
            elif isinstance(value, str):
                parent[key] = value + rng.choice(("x", " ", "\n", "\ud800"))
            else:
                parent[key] = rng.choice(([value], str(value)))
