"""The prepared store: arrays of every case, read at random a box at a time.

A store is one folder (or the same tree behind ``gs://``; to read, also ``s3://``, ``http://``)::

    manifest.json               see ``manifest.py`` (written last: no manifest, no store)
    cases/<case>/image/         zarr3, float32 (F, *spatial, C)
    cases/<case>/labels/        zarr3, uint8 (F, *spatial); absent for an unlabelled case
    cases/<case>/foreground/    zarr3, int32 (n, 2 + dims): class, frame, *voxel; likewise

A chunk is one whole frame in 2-D and a block of about 64 voxels a side in 3-D. Chunks carry a
CRC-32C, so that damage is an error and never a wrong number. Figures: ``docs/store.md``.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import re
import shutil
from collections.abc import Collection
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Float32, Int32, UInt8

from penn_jax.data.manifest import EXPECTED, Manifest, Split, is_case_name, read_manifest
from penn_jax.data.remote import ASKED_AGAIN, Place, Remote, place, reason, remote
from penn_jax.types import IGNORE_LABEL, FrameLabels, Frames, InputError

FOREGROUND_VOXELS = 10_000
"""Most voxels kept of one class of one case: enough to place patches, small enough to hold."""

_DTYPES = {"image": "float32", "labels": "uint8", "foreground": "int32"}
_BLOCK = 64
# The bounds of what a reader holds, whatever the number of cases: about 7 kB an open array,
# 160 kB a class of a foreground index.
_OPEN_ARRAYS = 4096
_HELD_FOREGROUNDS = 64
_CHUNK_CACHE_BYTES = 64 << 20
_REMOTE_CACHE_BYTES = 1 << 30
"""Behind a network a chunk that is read again costs a hundred times what it does on a disk."""

Box = tuple[slice, ...]
"""One slice for each of the axes (F, *spatial), inside the array."""


class Store:
    """Reads the prepared cases; safe to share between threads and to send to other processes.

    Args:
        path: folder of the store, or a URL that TensorStore knows. Behind a URL nothing that was
            read is asked for again: a finished store does not change.

    Attributes:
        manifest: the contents of ``manifest.json``, every key of which is told in ``manifest.py``.
        cases: names of all cases, in the manifest's order.

    Raises:
        InputError: no manifest, a damaged one, or one of another format.
    """

    def __init__(self, path: Place | str):
        self.path = str(path).rstrip("/") if "://" in str(path) else os.path.realpath(str(path))
        self._connect()
        self.manifest: Manifest = _read_manifest(self._root, self.path)
        self.cases: tuple[str, ...] = tuple(self.manifest["cases"])

    @property
    def is_remote(self) -> bool:
        """Whether every chunk comes over a network."""
        return "://" in self.path

    def __repr__(self) -> str:
        return f"Store({self.path!r}, data_hash={self.manifest['data_hash']!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest": self.manifest, "cases": self.cases}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def _connect(self, cached: bool = True) -> None:
        """Fresh handles and empty caches, all of bounded size."""
        most = _REMOTE_CACHE_BYTES if self.is_remote else _CHUNK_CACHE_BYTES
        self._context = _context(most if cached else 0)
        self._root = _root(self.path, self._context)
        self._array = lru_cache(_OPEN_ARRAYS)(self._open)
        self._foreground = lru_cache(_HELD_FOREGROUNDS)(self._read_foreground)

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

    def with_splits(self, splits: list[Split], unseen: Collection[str] = ()) -> Store:
        """The same cases under other splits, for choices that must not see the validation cases.

        Args:
            splits: in place of the manifest's.
            unseen: cases that count as for testing: nothing trains on them or on their kin.
        """
        other, cases = copy.copy(self), dict(self.manifest["cases"])
        for name in unseen:
            cases[name] = {**cases[name], "part": "test"}
        other.manifest = {**self.manifest, "splits": splits, "cases": cases}
        return other

    def uncached(self) -> Store:
        """The same cases, no chunk of which is kept, for readers that keep what they read."""
        other = copy.copy(self)
        other._connect(cached=False)
        return other

    def split(self, fold: int) -> Split:
        """The names of the ``train`` and ``validation`` cases of one split.

        Raises:
            InputError: there is no such split.
        """
        splits = self.manifest["splits"]
        if not 0 <= fold < len(splits):
            raise InputError(
                self.path, f"has {len(splits)} splits", f"split {fold}", "choose --fold from 0 on"
            )
        return splits[fold]

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
        return self._foreground(case)

    def _read_foreground(self, case: str) -> dict[int, np.ndarray]:
        table = self._read(case, "foreground", None)
        table.flags.writeable = False
        classes = np.split(table, np.flatnonzero(np.diff(table[:, 0])) + 1)
        return {int(rows[0, 0]): rows[:, 1:] for rows in classes if len(rows)}

    def _read(self, case: str, kind: str, box: Box | None) -> np.ndarray:
        array = self._array(case, kind)
        if box is not None:
            _check_inside(box, self.frames_shape(case)[:-1])
            array = array[box]
        try:
            return array.read().result()
        except (ValueError, OSError) as error:
            raise self._broken(case, kind, "a part missing or damaged", error) from error

    def _open(self, case: str, kind: str) -> Any:
        shape = self.frames_shape(case)
        if kind != "image" and not self.manifest["cases"][case]["labelled"]:
            raise InputError(
                self.path, f"no labels for case {case!r}", "a labelled case", "add some"
            )
        folder = self._root / f"cases/{case}/{kind}/"
        spec = {"driver": "zarr3", "dtype": _DTYPES[kind], **_WHOLE_CHUNKS}
        if self.is_remote:
            spec |= {"recheck_cached_data": "open", "recheck_cached_metadata": "open"}
        try:
            # The folder as an object: its spec().to_json() loses 270 bytes at every call.
            array = ts.open(spec, kvstore=folder, open=True, context=self._context).result()
        except (ValueError, OSError) as error:
            raise self._broken(case, kind, "an array missing or damaged", error) from error
        expected = {"image": shape, "labels": shape[:-1]}.get(kind, array.shape)
        if array.shape != expected:
            raise self._broken(case, kind, f"an array of shape {array.shape}, not {expected}")
        return array

    def _broken(
        self, case: str, kind: str, wrong: str, error: Exception | None = None
    ) -> InputError:
        remedy = "delete the store and prepare again"
        if self.is_remote and error is not None:  # which may be the network's
            wrong = f"{wrong}, or out of reach ({reason(error)})"
            remedy = f"check the network, or {remedy}"
        source = f"{self.path}/cases/{case}/{kind}"
        return InputError(source, wrong, "what penn prepare wrote", remedy)


class StoreWriter:
    """Writes the arrays of cases; several processes may write different cases of one store.

    Args:
        path: folder of the store, made when missing. The manifest is the caller's to write, last.
    """

    def __init__(self, path: Place | str):
        there = place(path) if isinstance(path, str) else path
        self.path: Place = there if isinstance(there, Remote) else Path(os.path.realpath(there))

    def write_case(self, case: str, image: Frames, labels: FrameLabels | None) -> None:
        """Write one case, in place of what was there under its name.

        Args:
            case: its name, also that of its folder.
            image: float32 (F, *spatial, C).
            labels: uint8 (F, *spatial), or None for an unlabelled case.

        Raises:
            InputError: the name cannot be that of a folder inside the store.
            OSError: the disk is full, or the folder cannot be written.
        """
        if not is_case_name(case):
            raise InputError(repr(case), "cannot name a case", "a folder's name", "rename the case")
        folder = self.path / "cases" / case
        arrays: dict[str, np.ndarray] = {"image": np.asarray(image, np.float32)}
        if labels is not None:
            arrays["labels"] = np.asarray(labels, np.uint8)
            arrays["foreground"] = foreground_table(case, arrays["labels"])
        _remove(folder)
        for kind, array in arrays.items():
            _write(folder / kind, array, _chunk(kind, array.shape))


def foreground_table(case: str, labels: FrameLabels) -> Int32[np.ndarray, "n columns"]:
    """Rows (class, frame, *voxel), sorted, of at most ``FOREGROUND_VOXELS`` of each class.

    Where a class has more, a generator seeded from the case's name draws them uniformly.
    """
    seed = int.from_bytes(hashlib.sha256(case.encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    flat = np.ravel(labels)
    tables = [np.empty((0, 1 + labels.ndim), np.int32)]
    for label in np.unique(flat):
        if label in (0, IGNORE_LABEL):
            continue
        voxels = np.flatnonzero(flat == label)
        if len(voxels) > FOREGROUND_VOXELS:
            voxels = np.sort(rng.choice(voxels, FOREGROUND_VOXELS, replace=False))
        columns = (np.full_like(voxels, label), *np.unravel_index(voxels, labels.shape))
        tables.append(np.stack(columns, axis=1).astype(np.int32))
    return np.concatenate(tables)


# Without these a chunk that is lost would read as zeros.
_WHOLE_CHUNKS = {"store_data_equal_to_fill_value": True, "fill_missing_data_reads": False}


def _context(cache_bytes: int) -> Any:
    """One copying and one reading thread: the loader decides how many cores data may take."""
    one = {"limit": 1}
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": cache_bytes},
            **ASKED_AGAIN,
            "data_copy_concurrency": one,
            "file_io_concurrency": one,
        }
    )


def _root(path: str, context: Any) -> Any:
    spec: Any = f"{path}/" if "://" in path else {"driver": "file", "path": f"{path}/"}
    if (there := remote(path)) is not None:
        spec = there.kvstore()
    try:
        return ts.KvStore.open(spec, context=context).result()
    except ValueError as error:
        raise InputError(
            path, "cannot be opened", "a folder, gs://, s3:// or http://", "correct it"
        ) from error


def _check_inside(box: Box, shape: tuple[int, ...]) -> None:
    """TensorStore would report a box outside the array only as a failed read."""
    if len(box) != len(shape):
        raise IndexError(f"a box of {len(box)} slices in an array of {len(shape)} axes")
    for part, size in zip(box, shape, strict=True):
        start, stop = part.start or 0, size if part.stop is None else part.stop
        if not 0 <= start <= stop <= size or part.step not in (None, 1):
            raise IndexError(f"{part} in an axis of {size} voxels")


def _read_manifest(root: Any, path: str) -> Manifest:
    source = f"{path}/manifest.json"
    if (there := remote(source)) is not None:
        content, _ = there.look()
    else:
        try:
            found = root.read("manifest.json").result()
        except (ValueError, OSError) as error:
            raise InputError(source, "cannot be read", EXPECTED, "run penn prepare") from error
        content = found.value if found.state == "value" else None
    if content is None:
        raise InputError(source, "is missing", EXPECTED, "run penn prepare")
    return read_manifest(content, source)


def _chunk(kind: str, shape: tuple[int, ...]) -> list[int]:
    """A whole frame of a 2-D case, equal blocks of at most 64 voxels a side of a 3-D case."""
    if kind == "foreground":
        return [max(1, n) for n in shape]
    spatial = shape[1:-1] if kind == "image" else shape[1:]
    if len(spatial) == 3:
        spatial = [math.ceil(n / math.ceil(n / _BLOCK)) for n in spatial]
    return [1, *spatial, *shape[1 + len(spatial) :]]


def _remove(folder: Place) -> None:
    if isinstance(folder, Remote):
        folder.delete(folder.names())
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _kvstore(folder: Place) -> dict[str, Any]:
    if isinstance(folder, Remote):
        return folder.kvstore()
    # Each file is not waited for until it is on the disk (ten times slower): what a power cut
    # leaves half-written fails its CRC.
    return {"driver": "file", "path": f"{folder}/", "file_io_sync": False}


def _write(folder: Place, array: np.ndarray, chunk: list[int]) -> None:
    metadata = {
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "crc32c"},
        ],
    }
    kvstore = _kvstore(folder)
    spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, **_WHOLE_CHUNKS}
    try:
        target = ts.open(spec, create=True, context=_context(0)).result()
        if isinstance(folder, Remote):  # each chunk alone would wait for the network
            target.write(array).result()
            return
        # One chunk after the other: when this fails, nothing is still on its way to the disk, and
        # what was written can be removed.
        for start in product(*map(range, [0] * array.ndim, array.shape, chunk)):
            stop = np.minimum(np.add(start, chunk), array.shape).tolist()
            box = tuple(map(slice, start, stop))
            target[box].write(array[box]).result()
    except ValueError as error:
        # What the system refused, TensorStore tells in its text alone.
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from error
        if isinstance(folder, Remote):
            raise folder.out_of_reach(error) from error
        raise
