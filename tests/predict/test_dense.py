"""Dense prediction: any tiling gives the scores of the whole frame."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penn_jax.config import ModelConfig
from penn_jax.model.network import Network, halo, initialise, total_stride
from penn_jax.predict.dense import Tiling, predict_frames, tile_grid


@functools.cache
def _network(dimensions, neighbours, skip="concat"):
    config = ModelConfig(stem=2, channels=(4, 6), blocks=1, skip=skip)
    network = Network(config, classes=2)
    variables = initialise(network, jax.random.key(0), 1 + 2 * neighbours, dimensions)
    # Statistics as after training, so that the normalisation does something.
    variables["batch_stats"] = jax.tree.map(lambda x: x + 0.3, variables["batch_stats"])
    apply = jax.jit(network.apply)
    return config, lambda tiles: np.asarray(apply(variables, tiles)[0])


@settings(max_examples=6)  # each new shape compiles
@given(
    st.sampled_from([2, 3]),
    st.lists(st.integers(30, 90), min_size=3, max_size=3),
    st.integers(0, 2**31 - 1),
)
def test_tiles_give_the_scores_of_the_whole_frame(dimensions, sizes, seed):
    neighbours = 1 if dimensions == 2 else 0
    config, forward = _network(dimensions, neighbours)
    spatial = [size // (1 if dimensions == 2 else 2) for size in sizes[:dimensions]]
    frames = np.random.default_rng(seed).normal(size=(2, *spatial, 1)).astype(np.float32)
    most = 1 << (10 if dimensions == 2 else 15)
    common = (total_stride(config), halo(config), neighbours)
    whole = predict_frames(forward, frames, Tiling(*common, batch_size=2))
    tiled = predict_frames(forward, frames, Tiling(*common, batch_size=3, most_voxels=most))
    assert whole.shape == (2, *spatial, 2)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    np.testing.assert_array_equal(tiled.argmax(-1), whole.argmax(-1))


def test_the_small_tiles_of_the_test_above_are_really_several():
    config, _ = _network(2, 0)
    tiling = Tiling(total_stride(config), halo(config), 0, 1, most_voxels=1 << 10)
    assert len(tile_grid((90, 90), tiling)) > 4
    assert len(tile_grid((30, 30), tiling)) == 1


def test_one_shape_is_compiled_whatever_is_left_for_the_last_batch():
    config, _ = _network(2, 0)
    shapes = set()

    def forward(tiles):
        shapes.add(tiles.shape)
        return tiles[..., 0]

    frames = np.random.default_rng(0).normal(size=(7, 21, 30, 1)).astype(np.float32)
    tiling = Tiling(total_stride(config), halo(config), 0, batch_size=4)
    np.testing.assert_array_equal(predict_frames(forward, frames, tiling), frames[..., 0])
    assert shapes == {(4, 24, 32, 1)}


@pytest.mark.parametrize("neighbours", [0, 1, 2])
def test_neighbours_are_the_slices_around(neighbours):
    frames = np.arange(5, dtype=np.float32)[:, None, None, None] * np.ones((5, 4, 4, 1), np.float32)
    seen = predict_frames(lambda tiles: tiles, frames, Tiling(4, 4, neighbours, 2))
    expected = np.clip(np.arange(5)[:, None] + np.arange(-neighbours, neighbours + 1)[None], 0, 4)
    np.testing.assert_array_equal(seen[:, 0, 0], expected)
