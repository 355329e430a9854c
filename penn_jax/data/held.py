"""Cases held in memory, where a patch costs less to cut than to read from the store."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

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

    Takes the store's place where it is read box by box; boxes must lie in the case. The arrays are
    shared with later callers and therefore read-only. Sent to another process it begins anew.
    """

    def __init__(self, store: Store):
        self.manifest = store.manifest
        self._store = store
        store = store.uncached()
        self._image = lru_cache(None)(partial(_whole, store, store.image))
        self._labels = lru_cache(None)(partial(_whole, store, store.labels))
        self._foreground = lru_cache(None)(store.foreground)

    def __reduce__(self) -> tuple[type[HeldFrames], tuple[Store]]:
        return HeldFrames, (self._store,)

    def image(self, case: str, box: Box) -> Float32[np.ndarray, ...]:
        return self._image(case)[box]

    def labels(self, case: str, box: Box) -> UInt8[np.ndarray, ...]:
        return self._labels(case)[box]

    def foreground(self, case: str) -> dict[int, Int32[np.ndarray, "n axes"]]:
        return self._foreground(case)


def _whole(store: Store, read: Callable[[str, Box], np.ndarray], case: str) -> np.ndarray:
    array = read(case, tuple(slice(0, size) for size in store.frames_shape(case)[:-1]))
    array.flags.writeable = False
    return array
