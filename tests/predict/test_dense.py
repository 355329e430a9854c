"""Dense prediction: any tiling gives the scores and the labels of the whole frame."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penn_jax.config import ModelConfig
from penn_jax.engine import bucketed
from penn_jax.model.fold import fold
from penn_jax.model.network import Network, halo, initialise, total_stride
from penn_jax.predict.dense import (
    GIB,
    WHOLE_FRAME,
    Tiling,
    bucket_size,
    predict_blocks,
    predict_frames,
    tile_grid,
)
from penn_jax.types import InputError

# Depth, width, stem, skip, residual and axes, with the padded frame and two tiles' worth of
# voxels for each: few shapes, since compilation takes most of the time.
NETWORKS = [
    (ModelConfig(stem=1, channels=(5,), blocks=2), 2, (24, 24), (150, 300)),
    (ModelConfig(stem=1, channels=(4, 6), blocks=1, residual=False), 2, (32, 40), (256, 800)),
    (ModelConfig(stem=2, channels=(4, 5), blocks=2, skip="add", residual=True), 2, (80, 64),
     (2500, 4000)),
    (ModelConfig(stem=2, channels=(3, 4, 6), blocks=1, skip="none"), 2, (80, 96), (3200, 6000)),
    (ModelConfig(stem=4, channels=(6, 4), blocks=1, skip="concat"), 2, (80, 64), (3200, 4000)),
    (ModelConfig(stem=1, channels=(3, 4), blocks=1, skip="concat"), 3, (20, 16, 24),
     (3500, 6000)),
    (ModelConfig(stem=2, channels=(4,), blocks=2, skip="none", residual=True), 3, (20, 24, 20),
     (2000, 7000)),
]  # fmt: skip
CLASSES = 3


def tiling(config, neighbours=0, batch_size=4, most=None) -> Tiling:
    """One byte a voxel, so that the budget counts voxels."""
    budget = 1.0 if most is None else most / GIB
    return Tiling(total_stride(config), halo(config), neighbours, batch_size, 1.0, budget)


@functools.cache
def _apply(number, neighbours):
    config, dimensions, _, _ = NETWORKS[number]
    network = Network(config, CLASSES)
    shapes = jax.eval_shape(
        lambda: initialise(network, jax.random.key(0), 1 + 2 * neighbours, dimensions)
    )
    return shapes, jax.jit(lambda v, x: jax.nn.softmax(network.apply(v, x)[0]))


@functools.cache
def _bucketed(number):
    config, _, _, _ = NETWORKS[number]
    return bucketed(dataclasses.replace(config, norm="none"), CLASSES)


def _forward(number, neighbours, seed, as_predicted=False):
    """A network with random weights, and statistics as after training.

    Called as it is or, as ``penn predict`` does, folded and in arrays of few sizes.
    """
    shapes, apply = _apply(number, neighbours)
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        if "kernel" in jax.tree_util.keystr(path):
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(0, deviation, leaf.shape).astype(np.float32)
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(drawn, shapes)
    if as_predicted:
        folded = fold(variables, NETWORKS[number][0])[0]
        return lambda tiles: _bucketed(number)(folded, tiles)
    return lambda tiles: np.asarray(apply(variables, tiles))


@settings(max_examples=120)
@given(
    number=st.sampled_from(range(len(NETWORKS))),
    tile=st.sampled_from((0, 1)),
    short=st.lists(st.integers(0, 7), min_size=3, max_size=3),
    frames=st.integers(1, 2),
    as_predicted=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_tiles_give_the_scores_and_labels_of_the_whole_frame(
    number, tile, short, frames, as_predicted, seed
):
    config, dimensions, padded, most = NETWORKS[number]
    neighbours = number % 2 if dimensions == 2 else 0
    forward = _forward(number, neighbours, seed, as_predicted)
    # Frames that end anywhere within the last stride, or strides before the end of their array.
    within = max(padded) if as_predicted else total_stride(config)
    spatial = [n - s % within for n, s in zip(padded, short, strict=False)]
    image = np.random.default_rng(seed).normal(size=(frames, *spatial, 1)).astype(np.float32)
    # Batches of one: a shape less to compile for each number of frames and tiles.
    whole = predict_frames(forward, image, tiling(config, neighbours, 1))
    cut = tiling(config, neighbours, 1, most[tile])
    tiled = predict_frames(forward, image, cut)
    assert whole.shape == (frames, *spatial, CLASSES)
    assert np.abs(tiled - whole).max() <= 1e-5
    np.testing.assert_array_equal(tiled.argmax(-1), whole.argmax(-1))


@pytest.mark.parametrize("number", range(len(NETWORKS)))
def test_the_tiles_of_the_test_above_are_several_and_the_answers_varied(number):
    config, _, padded, most = NETWORKS[number]
    assert not any(n % total_stride(config) for n in padded)
    assert len(tile_grid(padded, tiling(config))) == 1
    counts = [len(tile_grid(padded, tiling(config, most=voxels))) for voxels in most]
    assert counts[0] > counts[1] > 1


def test_the_test_above_would_see_a_halo_that_is_too_small():
    config, _, padded, most = NETWORKS[1]
    forward = _forward(1, 0, 0)
    image = np.random.default_rng(0).normal(size=(1, *padded, 1)).astype(np.float32)
    whole = predict_frames(forward, image, tiling(config, batch_size=1))
    stride = total_stride(config)
    short = Tiling(stride, halo(config) - stride, 0, 1, 1.0, most[0] / GIB)
    assert np.abs(predict_frames(forward, image, short) - whole).max() > 1e-4


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    # By hand: up to 8 strides each, then every second up to 16, every fourth up to 32, ….
    [(1, 16, 16), (224, 32, 224), (256, 32, 256), (257, 32, 320), (290, 32, 320), (512, 32, 512),
     (513, 32, 640), (7, 1, 7), (9, 1, 10), (17, 1, 20), (33, 1, 40), (100, 8, 112)],
)  # fmt: skip
def test_the_series_of_sizes(size, stride, expected):
    assert bucket_size(size, stride) == expected


@given(st.integers(1, 3000), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_sizes_of_the_series_are_near(size, stride):
    bucket = bucket_size(size, stride)
    assert bucket % stride == 0
    assert size <= bucket < 1.25 * size + stride
    assert bucket_size(bucket, stride) == bucket
    assert bucket_size(size + 1, stride) >= bucket


def test_frames_larger_than_a_tile_share_its_shape():
    config = ModelConfig(stem=2, channels=(2, 2), blocks=1)
    shapes = {
        tile_grid((x, y, z), tiling(config, most=1 << 16)).size
        for x, y, z in np.random.default_rng(0).integers(100, 129, (20, 3)).tolist()
    }
    assert len(shapes) <= 4


def test_one_shape_is_compiled_whatever_is_left_for_the_last_batch():
    config = ModelConfig(stem=2, channels=(4, 6), blocks=1)
    shapes = set()

    def forward(tiles):
        shapes.add(tiles.shape)
        return tiles[..., 0]

    frames = np.random.default_rng(0).normal(size=(7, 21, 30, 1)).astype(np.float32)
    np.testing.assert_array_equal(predict_frames(forward, frames, tiling(config)), frames[..., 0])
    assert shapes == {(4, 24, 32, 1)}


def test_batches_fit_the_budget():
    config = ModelConfig(stem=2, channels=(4, 6), blocks=1)
    sizes = []

    def forward(tiles):
        sizes.append(tiles.size)
        return tiles[..., 0]

    frames = np.zeros((7, 64, 64, 1), np.float32)
    predict_frames(forward, frames, tiling(config, batch_size=4, most=3 * 64 * 64 + 1))
    assert max(sizes) == 3 * 64 * 64
    sizes.clear()
    predict_frames(forward, frames, tiling(config, batch_size=4, most=3000))
    assert max(sizes) <= 3000


def test_tiles_cost_little_more_than_they_must():
    config = ModelConfig(stem=2, channels=(4, 6), blocks=1)  # halo 12
    grid = tile_grid((512, 512), tiling(config, most=1 << 16))
    computed = len(grid) * np.prod(grid.size)
    # Square tiles of 256² keep 232² each inside: (512 / 232)² = 4.9 tiles' worth at best.
    assert computed <= 1.5 * 512 * 512


def test_a_budget_below_one_tile_names_what_is_needed():
    config = ModelConfig(stem=2, channels=(4, 6), blocks=1)  # stride 4, halo 12: tiles of 28
    plan = Tiling(4, halo(config), 0, 1, voxel_bytes=1024.0, memory_budget=0.0001)
    # 28² · 1024 / 2^30 = 0.00075.
    with pytest.raises(InputError, match=r"memory-budget: 0.0001 GiB .* at least 0.01 GiB"):
        predict_frames(lambda x: x, np.zeros((1, 100, 100, 1), np.float32), plan)


def test_a_network_that_is_not_local_is_never_cut():
    plan = Tiling(4, WHOLE_FRAME, 0, 4, 1.0, 100 * 100 / GIB)
    assert len(tile_grid((100, 80), plan)) == 1
    with pytest.raises(InputError, match="memory-budget"):
        tile_grid((200, 80), plan)


@pytest.mark.parametrize("neighbours", [0, 1, 2])
def test_neighbours_are_the_slices_around(neighbours):
    frames = np.arange(5, dtype=np.float32)[:, None, None, None] * np.ones((5, 4, 4, 1), np.float32)
    seen = predict_frames(lambda tiles: tiles, frames, Tiling(4, 4, neighbours, 2))
    expected = np.clip(np.arange(5)[:, None] + np.arange(-neighbours, neighbours + 1)[None], 0, 4)
    np.testing.assert_array_equal(seen[:, 0, 0], expected)


def test_blocks_bring_their_margin_as_far_as_the_frame_goes():
    config = ModelConfig(stem=1, channels=(4,), blocks=1)  # halo 1
    image = np.random.default_rng(0).normal(size=(2, 30, 26, 1)).astype(np.float32)
    covered = np.zeros(image.shape[:-1], int)
    for block in predict_blocks(lambda x: x, image, tiling(config, most=144), (3, 0)):
        covered[(block.frame, *block.box)] += 1
        rows, columns = block.box
        assert block.reach == (slice(max(0, rows.start - 3), min(30, rows.stop + 3)), columns)
        np.testing.assert_array_equal(block.values, image[(block.frame, *block.reach)])
    assert (covered == 1).all()


def test_an_error_of_the_network_reaches_the_caller():
    def fails(tiles):
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        predict_frames(fails, np.zeros((9, 8, 8, 1), np.float32), Tiling(4, 4, 0, 2))
