"""Cases held in memory: a patch of a frame that lies there costs less to cut than one to read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from penn_jax.data.store import FOREGROUND_VOXELS, Box, Store
from penn_jax.types import IGNORE_LABEL


def held_bytes(store: Store, cases: Iterable[str]) -> int:
    """Most memory that ``HeldFrames`` takes of these cases: images, labels and foreground."""
    total = 0
    for case in cases:
        record = store.manifest["cases"][case]
        *frames, channels = record["frames_shape"]
        of_class = (n for label, n in record["voxels"].items() if 0 < int(label) < IGNORE_LABEL)
        indexed = sum(min(n, FOREGROUND_VOXELS) for n in of_class)
        total += math.prod(frames) * (4 * channels + 1) + indexed * 4 * (1 + len(frames))
    return total


class HeldFrames:
    """The frames of a store, each case read whole when it is first asked for, and kept.

    Reads like the store itself, and fails as it does; the arrays are shared with later callers and
    therefore read-only. Sent to another process it begins anew.
    """

    def __init__(self, store: Store):
        self._store = store
        self._image = lru_cache(None)(lambda case: self._kept(store.image(case, self._box(case))))
        self._labels = lru_cache(None)(lambda case: self._kept(store.labels(case, self._box(case))))
        self._foreground = lru_cache(None)(store.foreground)

    def __reduce__(self) -> tuple[type[HeldFrames], tuple[Store]]:
        return HeldFrames, (self._store,)

    def image(self, case: str, box: Box) -> Float32[np.ndarray, ...]:
        return self._image(case)[box]

    def labels(self, case: str, box: Box) -> UInt8[np.ndarray, ...]:
        return self._labels(case)[box]

    def foreground(self, case: str) -> dict[int, Int32[np.ndarray, "n axes"]]:
        return self._foreground(case)

    def _box(self, case: str) -> Box:
        return tuple(slice(0, size) for size in self._store.frames_shape(case)[:-1])

    @staticmethod
    def _kept(array: np.ndarray) -> np.ndarray:
        array.flags.writeable = False
        return array
