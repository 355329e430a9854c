"""Frames held in memory: the store's own, read once, and only where they fit."""

import pickle

import numpy as np
import pytest
from made_stores import write_store

from penn_jax.config import PatchConfig
from penn_jax.data import loader
from penn_jax.data.held import HeldFrames, held_bytes
from penn_jax.data.store import Store
from penn_jax.types import InputError

SHAPE = (3, 20, 30)


@pytest.fixture
def store(tmp_path):
    generator = np.random.default_rng(0)
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, :4, :5], labels[2, 0, 0] = 1, 255
    image = generator.normal(size=(*SHAPE, 2)).astype(np.float32)
    write_store(tmp_path, {"marked": (image, labels), "unmarked": (image + 1, None)})
    return Store(tmp_path)


def test_reads_what_the_store_reads_and_reads_it_once(store, monkeypatch):
    box = (slice(1, 3), slice(2, 9), slice(0, 30))
    expected = store.image("marked", box), store.labels("marked", box)
    voxels = store.foreground("marked")[1].copy()
    reads = []
    read = Store._read
    monkeypatch.setattr(Store, "_read", lambda *args: reads.append(args[1:3]) or read(*args))
    held = HeldFrames(Store(store.path))
    for _ in range(3):
        np.testing.assert_array_equal(held.image("marked", box), expected[0])
        np.testing.assert_array_equal(held.labels("marked", box), expected[1])
        np.testing.assert_array_equal(held.foreground("marked")[1], voxels)
    assert sorted(reads) == [("marked", kind) for kind in ("foreground", "image", "labels")]
    with pytest.raises(ValueError, match="read-only"):
        held.image("marked", box)[:] = 0


def test_fails_as_the_store_does_and_can_be_sent(store):
    held = pickle.loads(pickle.dumps(HeldFrames(store)))
    assert held.image("unmarked", (slice(0, 1),) * 3).shape == (1, 1, 1, 2)
    with pytest.raises(InputError, match="no labels"):
        held.labels("unmarked", (slice(0, 1),) * 3)


def test_bytes_are_those_of_images_labels_and_foreground(store):
    # 1,800 voxels of two float32 channels and a label; 20 foreground voxels of four int32 (class,
    # frame, place); 255 is in no index.
    assert held_bytes(store, ["marked"]) == 1800 * 9 + 20 * 16
    assert held_bytes(store, store.cases) == 2 * 1800 * 9 + 20 * 16


def test_cases_that_do_not_fit_are_cut_out_of_the_store_alike(store, monkeypatch):
    config = PatchConfig((16, 16), neighbours=1)

    def batch():
        batches = loader.stream(store, store.cases, config, 8, seed=0)
        try:
            return next(batches)
        finally:
            batches.close()

    held = batch()
    monkeypatch.setattr(loader, "_HELD_BYTES", held_bytes(store, store.cases) - 1)
    monkeypatch.setattr(loader, "HeldFrames", None)  # would fail if it were asked for
    for name, array in batch().items():
        np.testing.assert_array_equal(array, held[name])
