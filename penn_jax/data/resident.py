"""All frames of the cases in arrays of one shape, for devices that hold them and cut patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penn_jax.data.store import Store
from penn_jax.types import IGNORE_LABEL


def resident_frames(store: Store, cases: Sequence[str]) -> dict[str, np.ndarray]:
    """Read whole cases, frame after frame, each into the corner of an array of the largest's size.

    Args:
        store: prepared cases.
        cases: those to read, whose numbers the loader's draws give.

    Returns:
        ``image`` float32 (N, *largest, C), ``label`` uint8 (N, *largest; 255 where there is none),
        ``first`` int32 (cases), the number of each case's first frame, and ``shape`` int32
        (cases, 1 + axes), its (F, *spatial).
    """
    shapes = np.array([store.frames_shape(case) for case in cases], np.int32)
    counts, largest, channels = shapes[:, 0], shapes[:, 1:-1].max(axis=0), shapes[0, -1]
    first = np.cumsum([0, *counts[:-1]], dtype=np.int32)
    image = np.zeros((counts.sum(), *largest, channels), np.float32)
    label = np.full(image.shape[:-1], IGNORE_LABEL, np.uint8)
    for case, start, (frames, *spatial, _) in zip(cases, first, shapes, strict=True):
        whole = tuple(slice(0, int(size)) for size in (frames, *spatial))
        target = (slice(start, start + frames), *whole[1:])
        image[target] = store.image(case, whole)
        if store.manifest["cases"][case]["labelled"]:
            label[target] = store.labels(case, whole)
    return {"image": image, "label": label, "first": first, "shape": shapes[:, :-1]}
