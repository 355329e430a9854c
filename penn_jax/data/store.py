"""The prepared store: arrays of every case, read at random a box at a time.

A store is one folder (or the same tree behind ``gs://``, ``s3://`` or ``http://``)::

    manifest.json               what was prepared, from what (written last: no manifest, no store)
    cases/<case>/image/         zarr3, float32 (F, *spatial, C)
    cases/<case>/labels/        zarr3, uint8 (F, *spatial); absent for an unlabelled case
    cases/<case>/foreground/    zarr3, int32 (n, 2 + dims): class, frame, *voxel; likewise

A chunk is one whole frame in 2-D and a block of about 64 voxels a side in 3-D. Chunks carry a
CRC-32C, so that damage is an error and never a wrong number. Figures: ``docs/store.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import tensorstore as ts
from jaxtyping import Float32, Int32, UInt8

from penn_jax.types import IGNORE_LABEL, FrameLabels, Frames, InputError

FORMAT = 1
FOREGROUND_VOXELS = 10_000
"""Most voxels kept of one class of one case: enough to place patches, small enough to hold."""

_BLOCK = 64
_OPEN_ARRAYS = 512
_CHUNK_CACHE_BYTES = 64 << 20
_FOREGROUND_CACHE_BYTES = 64 << 20

Box = tuple[slice, ...]
"""One slice for each of the axes (F, *spatial), inside the array."""

Value = TypeVar("Value")


class Store:
    """Reads the prepared cases; safe to share between threads and to send to other processes.

    Args:
        path: folder of the store, or a URL that TensorStore knows.

    Attributes:
        manifest: the contents of ``manifest.json``.
        cases: names of all cases, in the manifest's order.

    Raises:
        InputError: no manifest, a damaged one, or one of another format.
    """

    def __init__(self, path: Path | str):
        self.path = str(path) if "://" in str(path) else str(Path(path).resolve())
        self._connect()
        self.manifest = _read_manifest(self._root, self.path)
        self.cases: tuple[str, ...] = tuple(self.manifest["cases"])

    def __repr__(self) -> str:
        return f"Store({self.path!r}, data_hash={self.manifest['data_hash']!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest": self.manifest, "cases": self.cases}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def _connect(self) -> None:
        """Fresh handles and empty caches, all of bounded size."""
        self._context = _context(_CHUNK_CACHE_BYTES)
        self._root = _root(self.path, self._context)
        self._arrays: _Recent[Any] = _Recent(_OPEN_ARRAYS)
        self._foregrounds: _Recent[dict[int, np.ndarray]] = _Recent(_FOREGROUND_CACHE_BYTES)

    def frames_shape(self, case: str) -> tuple[int, ...]:
        """Shape (F, *spatial, C) of the case's image.

        Raises:
            InputError: the store has no such case.
        """
        if case not in self.manifest["cases"]:
            raise InputError(
                self.path, f"no case {case!r}", "a case of the manifest", "see Store.cases"
            )
        return tuple(self.manifest["cases"][case]["frames_shape"])

    def image(self, case: str, box: Box) -> Float32[np.ndarray, ...]:
        """The box of the case's image, float32 (*box, C).

        Raises:
            InputError: the store has no such case, or its array is missing or damaged.
            IndexError: the box leaves the image.
        """
        return self._read(case, "image", box)

    def labels(self, case: str, box: Box) -> UInt8[np.ndarray, ...]:
        """The box of the case's labels, uint8 (*box).

        Raises:
            InputError: the case is unknown or unlabelled, or its array is missing or damaged.
            IndexError: the box leaves the labels.
        """
        return self._read(case, "labels", box)

    def foreground(self, case: str) -> dict[int, Int32[np.ndarray, "n axes"]]:
        """Voxels (frame, *voxel) of each foreground class, at most ``FOREGROUND_VOXELS`` of each.

        The arrays are shared with later callers and therefore read-only.

        Raises:
            InputError: the case is unknown or unlabelled, or its index is missing or damaged.
        """

        def read() -> tuple[dict[int, np.ndarray], int]:
            table = self._read(case, "foreground", ())
            table.flags.writeable = False
            starts = np.flatnonzero(np.diff(table[:, 0])) + 1
            parts = [part for part in np.split(table, starts) if len(part)]
            voxels = {int(part[0, 0]): part[:, 1:] for part in parts}
            return voxels, table.nbytes

        return self._foregrounds.get(case, read)

    def _read(self, case: str, kind: str, box: Box) -> np.ndarray:
        region = self._arrays.get((case, kind), lambda: (self._open(case, kind), 1))[box]
        try:
            return region.read().result()
        except (ValueError, OSError) as error:
            raise self._broken(case, kind, "is missing a part or damaged") from error

    def _open(self, case: str, kind: str) -> Any:
        shape = self.frames_shape(case)
        folder = self._root / f"cases/{_checked(case)}/{kind}/"
        spec = {"driver": "zarr3", "kvstore": folder.spec().to_json(), **_WHOLE_CHUNKS}
        try:
            array = ts.open(spec, open=True, context=self._context).result()
        except (ValueError, OSError) as error:
            raise self._broken(case, kind, "is missing or damaged") from error
        expected = {"image": shape, "labels": shape[:-1]}.get(kind, array.shape)
        if array.shape != expected:
            raise self._broken(case, kind, f"has the shape {array.shape}, not {expected}")
        return array

    def _broken(self, case: str, kind: str, wrong: str) -> InputError:
        return InputError(
            self.path,
            f"the {kind} of case {case!r} {wrong}",
            "the arrays that penn prepare wrote",
            "prepare again",
        )


class StoreWriter:
    """Writes the arrays of cases; several processes may write different cases of one store.

    Args:
        path: folder of the store, made when missing. The manifest is the caller's to write, last.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path).resolve()

    def write_case(self, case: str, image: Frames, labels: FrameLabels | None) -> None:
        """Write one case, in place of what was there under its name.

        Args:
            case: its name, also that of its folder.
            image: float32 (F, *spatial, C).
            labels: uint8 (F, *spatial), or None for an unlabelled case.

        Raises:
            InputError: the name cannot be that of a folder inside the store.
            ValueError: image and labels differ in shape.
        """
        arrays: dict[str, np.ndarray] = {"image": np.asarray(image, np.float32)}
        if labels is not None:
            if labels.shape != image.shape[:-1]:
                raise ValueError(f"labels {labels.shape} do not fit the image {image.shape}")
            arrays["labels"] = np.asarray(labels, np.uint8)
            arrays["foreground"] = foreground_table(case, arrays["labels"])
        folder = self.path / "cases" / _checked(case)
        for kind, array in arrays.items():
            _write(folder / kind, array, _chunk(kind, array.shape))


def foreground_table(case: str, labels: FrameLabels) -> Int32[np.ndarray, "n columns"]:
    """Rows (class, frame, *voxel), sorted, of at most ``FOREGROUND_VOXELS`` of each class.

    Where a class has more, a generator seeded from the case's name draws them uniformly.
    """
    seed = int.from_bytes(hashlib.sha256(case.encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    flat = np.ravel(labels)
    counts = np.bincount(flat, minlength=256)
    tables = [np.empty((0, 1 + labels.ndim), np.int32)]
    for label in np.flatnonzero(counts):
        if label in (0, IGNORE_LABEL):
            continue
        voxels = np.flatnonzero(flat == label)
        if len(voxels) > FOREGROUND_VOXELS:
            voxels = np.sort(rng.choice(voxels, FOREGROUND_VOXELS, replace=False))
        columns = (np.full_like(voxels, label), *np.unravel_index(voxels, labels.shape))
        tables.append(np.stack(columns, axis=1).astype(np.int32))
    return np.concatenate(tables)


class _Recent(Generic[Value]):
    """The values used last, by key, of a total size within the limit."""

    def __init__(self, limit: int):
        self._limit = limit
        self._size = 0
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[Value, int]]) -> Value:
        """The value of the key, made with its size where it is not held."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        # Outside the lock: two threads may make the same value, none waits for another's file.
        value, size = make()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = value, size
                self._size += size
            while self._size > self._limit:
                self._size -= self._entries.popitem(last=False)[1][1]
        return value


# Without these a chunk that is lost would read as zeros.
_WHOLE_CHUNKS = {"store_data_equal_to_fill_value": True, "fill_missing_data_reads": False}


def _context(cache_bytes: int) -> Any:
    """One copying and one reading thread: the loader decides how many cores data may take."""
    one = {"limit": 1}
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": cache_bytes},
            "data_copy_concurrency": one,
            "file_io_concurrency": one,
        }
    )


def _root(path: str, context: Any) -> Any:
    spec = f"{path.rstrip('/')}/" if "://" in path else {"driver": "file", "path": f"{path}/"}
    return ts.KvStore.open(spec, context=context).result()


def _checked(case: str) -> str:
    if case in ("", ".", "..") or any(mark in case for mark in "/\\\0"):
        raise InputError(
            repr(case), "not a name for a case", "a name that can be a folder's", "rename the case"
        )
    return case


def _read_manifest(root: Any, path: str) -> dict[str, Any]:
    expected, remedy = f"a prepared store of format {FORMAT}", "run penn prepare"
    try:
        found = root.read("manifest.json").result()
    except (ValueError, OSError) as error:
        raise InputError(path, "cannot be read", expected, remedy) from error
    if found.state != "value":
        raise InputError(path, "has no manifest.json", expected, remedy)
    source = f"{path.rstrip('/')}/manifest.json"
    try:
        manifest = json.loads(found.value)
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(source, "is damaged", expected, remedy) from error
    if version != FORMAT:
        raise InputError(source, f"is of format {version!r}", expected, remedy)
    try:
        manifest["data_hash"]
        shapes = [tuple(map(int, case["frames_shape"])) for case in manifest["cases"].values()]
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise InputError(source, "is damaged", expected, remedy) from error
    if any(len(shape) not in (4, 5) for shape in shapes):
        raise InputError(source, "is damaged", expected, remedy)
    for case in manifest["cases"]:
        _checked(case)
    return manifest


def _chunk(kind: str, shape: tuple[int, ...]) -> list[int]:
    """A whole frame of a 2-D case, equal blocks of at most 64 voxels a side of a 3-D case."""
    if kind == "foreground":
        return [max(1, n) for n in shape]
    spatial = shape[1:-1] if kind == "image" else shape[1:]
    if len(spatial) == 3:
        spatial = [math.ceil(n / math.ceil(n / _BLOCK)) for n in spatial]
    return [1, *spatial, *shape[1 + len(spatial) :]]


def _write(folder: Path, array: np.ndarray, chunk: list[int]) -> None:
    # Each file is not waited for until it is on the disk (ten times slower): what a power cut
    # leaves half-written fails its CRC.
    kvstore = {"driver": "file", "path": f"{folder}/", "file_io_sync": False}
    metadata = {
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "crc32c"},
        ],
    }
    spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, **_WHOLE_CHUNKS}
    target = ts.open(spec, create=True, delete_existing=True, context=_context(0)).result()
    target.write(array).result()
