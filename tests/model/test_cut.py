"""Patches cut on the device are those that the host cuts."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit
from made_stores import write_store

from penn_jax.config import PatchConfig
from penn_jax.data.loader import stream
from penn_jax.data.resident import resident_frames
from penn_jax.data.store import Store
from penn_jax.model.cut import DeviceFrames, cut


def store_of(folder, shapes):
    rng = np.random.default_rng(0)
    cases = {
        f"case{n}": (
            rng.normal(size=(*shape, 2)).astype(np.float32),
            # Blocks, so that few voxels lie on a border where rounding decides.
            np.kron(rng.integers(0, 4, [-(-s // 4) for s in shape]), np.ones([4] * len(shape)))[
                tuple(map(slice, shape))
            ].astype(np.uint8),
        )
        for n, shape in enumerate(shapes)
    }
    return Store(write_store(folder, cases))


@pytest.mark.parametrize(
    ("shapes", "size", "neighbours"),
    [
        ([(5, 40, 32), (3, 24, 48)], (16, 16), 0),
        ([(5, 40, 32), (1, 24, 48)], (16, 24), 2),
        ([(2, 8, 8), (1, 40, 40)], (16, 16), 0),  # a frame smaller than the patch
        ([(1, 20, 24, 16), (1, 12, 28, 20)], (8, 8, 12), 0),
    ],
)
def test_equals_the_patches_of_the_host(tmp_path, shapes, size, neighbours):
    store = store_of(tmp_path, shapes)
    config = PatchConfig(
        size=size, neighbours=neighbours, rotation_degrees=30, scaling=1.3, stretch=1.1, flip=True
    )
    batches = stream(store, store.cases, config, batch_size=32, seed=3)
    batch = next(batches)
    batches.close()
    frames = DeviceFrames(
        **{k: jnp.asarray(v) for k, v in resident_frames(store, store.cases).items()}
    )
    place = jnp.asarray(batch["place"], jnp.float32)
    image, label = jit(lambda frames, place: cut(frames, place, size, neighbours))(frames, place)
    # float32 places are off by 1e-5 voxels or less, neighbouring values differ by 8 at most.
    np.testing.assert_allclose(image, batch["image"], atol=2e-4)
    assert np.mean(np.asarray(label) != batch["label"]) < 1e-3
    assert (np.asarray(label) == 255).any() == (batch["label"] == 255).any()


def test_draws_alone_are_the_same_draws(tmp_path):
    store = store_of(tmp_path, [(5, 40, 32), (3, 24, 48)])
    config = PatchConfig(size=(16, 16))
    with_patches = stream(store, store.cases, config, batch_size=8, seed=1)
    alone = stream(store, store.cases, config, batch_size=8, seed=1, cut=False)
    for _ in range(3):
        batch, draws = next(with_patches), next(alone)
        assert draws.keys() == {"index", "place"}
        np.testing.assert_array_equal(draws["place"], batch["place"])
        np.testing.assert_array_equal(draws["index"], batch["index"])
    with_patches.close()
    alone.close()
