"""Patches cut on several devices are those of the host, under ``jit`` and under ``pmap``."""

import jax
import numpy as np
import pytest
from made_stores import write_store

from penn_jax.config import PatchConfig
from penn_jax.cutting import device_cutter
from penn_jax.data.loader import stream
from penn_jax.data.store import Store
from penn_jax.optim.parallel import compile_step


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_equals_the_patches_of_the_host_and_lies_where_the_step_wants_it(tmp_path, kind):
    rng = np.random.default_rng(0)
    cases = {
        f"case{n}": (
            rng.normal(size=(3, 24, 32, 1)).astype(np.float32),
            rng.integers(0, 4, (3, 24, 32)).astype(np.uint8),
        )
        for n in range(3)
    }
    store = Store(write_store(tmp_path, cases))
    config = PatchConfig(size=(16, 16), neighbours=1)

    def build(axis):
        def step(state, batch, progress):
            del axis, progress
            return state, batch

        return step

    compiled = compile_step(build, kind)
    cut_batch = device_cutter(store, store.cases, config, compiled, kind)
    whole = stream(store, store.cases, config, batch_size=8, seed=0)
    draws = stream(store, store.cases, config, batch_size=8, seed=0, cut=False)
    expected = next(whole)
    placed = compiled.place(next(draws))
    batch = cut_batch(placed)
    flat = {name: np.asarray(x).reshape(8, *expected[name].shape[1:]) for name, x in batch.items()}
    np.testing.assert_array_equal(flat["index"], expected["index"])
    # float32 places are off by 1e-5 voxels or less, neighbouring values differ by 8 at most.
    np.testing.assert_allclose(flat["image"], expected["image"], atol=2e-4)
    # Labels of noise change at every border of a voxel, where rounding decides.
    assert np.mean(flat["label"] != expected["label"]) < 1e-3
    # As placed: a quarter of the batch on each of the four devices.
    assert {s.device for s in batch["image"].addressable_shards} == set(jax.devices())
    assert batch["image"].addressable_shards[0].data.size * 4 == batch["image"].size
    whole.close()
    draws.close()
