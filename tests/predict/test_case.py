"""From a scan to its mask, block by block, against the plain way that holds everything."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penn_jax.data.grid import from_frames, plan_frames, to_frames
from penn_jax.data.volume import Volume
from penn_jax.predict import case as module
from penn_jax.predict.case import Case, most_likely, predict_case
from penn_jax.predict.certainty import entropy, overlap_sums
from penn_jax.predict.dense import GIB, Tiling

RAS = np.array([[0, 1], [1, 1], [2, 1]])


def local_network(tiles: np.ndarray) -> np.ndarray:
    """Three scores of each voxel's own intensities, summing to one."""
    value = tiles.sum(axis=-1)
    scores = np.stack([np.cos(3 * value), np.sin(5 * value), np.cos(value + 1)], axis=-1) + 1.1
    return (scores / scores.sum(axis=-1, keepdims=True)).astype(np.float32)


@settings(max_examples=60)
@given(
    dimensions=st.sampled_from((2, 3)),
    shape=st.tuples(*[st.integers(5, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 2)] * 3),
    target=st.one_of(st.none(), st.tuples(*[st.floats(0.4, 3)] * 3)),
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from((1, -1))] * 3),
    slab=st.sampled_from((1, 2000, 1 << 22)),
    seed=st.integers(0, 999),
)
def test_blocks_give_the_mask_of_the_whole(
    dimensions, shape, spacing, target, order, signs, slab, seed
):
    rng = np.random.default_rng(seed)
    scan = rng.normal(size=(*shape, 1)).astype(np.float32)
    orientation = np.array(list(zip(order, signs, strict=True)))
    target = None if target is None else target[:dimensions]
    affine = np.diag((*spacing, 1.0))
    grid = plan_frames(shape, affine, orientation, dimensions, target)
    frames = to_frames(scan, grid, 1)
    case = Case(Volume.__new__(Volume), grid, frames, {})
    # Tiles of some hundred voxels, with a margin for the interpolation back: many blocks.
    least = np.prod([4 * (2 * -(-margin // 4) + 1) for margin in grid.margins])
    budget = max(least, 600 if dimensions == 2 else 4000) / GIB
    likely = np.empty((*shape, 3), np.float32, order="F")
    unsure = np.full(shape, -1, np.float32, order="F")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SLAB", slab)
        mask, sums = predict_case(
            case, local_network, Tiling(4, 0, 0, 3, 1.0, budget), likely, unsure
        )
    expected = from_frames(local_network(frames), grid, order=1)
    np.testing.assert_allclose(likely, expected, atol=1e-6)
    # The comparison of float32 scores may tie differently only where they agree to rounding.
    top = np.sort(expected, axis=-1)
    clear = top[..., -1] - top[..., -2] > 2e-6
    np.testing.assert_array_equal(mask[clear], expected.argmax(-1)[clear])
    np.testing.assert_array_equal(mask, likely.argmax(-1))
    np.testing.assert_array_equal(unsure, entropy(likely))
    np.testing.assert_allclose(sums, overlap_sums(likely, mask), rtol=1e-6)


def test_a_thinned_scan_has_the_intensities_of_the_whole():
    rng = np.random.default_rng(0)
    array = rng.gamma(2.0, 100.0, size=(90, 70, 40, 2)).astype(np.float32)
    array[..., 1] += 1000
    found = module._intensity(array)
    for name, percent in [("median", 50), ("percentile_99", 99)]:
        whole = np.percentile(array, percent, axis=(0, 1, 2))
        np.testing.assert_allclose(found[name], whole, rtol=0.05)
    small = module._intensity(array[:5, :5, :5])
    assert small["minimum"] == array[:5, :5, :5].min((0, 1, 2)).tolist()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_memory_does_not_grow_with_classes_times_the_volume_of_a_fine_scan(dimensions):
    shape = (96,) * 3
    # Frames of 24 voxels an axis, at 4 mm, of a scan at 1 mm.
    grid = plan_frames(shape, np.eye(4), RAS, dimensions, (4.0,) * dimensions)
    frames = np.random.default_rng(0).normal(size=(*grid.shape, 1)).astype(np.float32)
    case, peak = Case(Volume.__new__(Volume), grid, frames, {}), {}
    for classes in (2, 25):
        weights = np.linspace(-1, 1, classes, dtype=np.float32)
        tracemalloc.start()
        predict_case(case, lambda tiles, w=weights: np.cos(9 * tiles * w), Tiling(4, 4, 0, 4))
        peak[classes] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # 25 classes of the whole scan are 88 MB, one slab of interpolated values 17 MB.
    assert peak[25] < 88e6 * 0.8
    assert peak[25] - peak[2] < 60e6


def test_most_likely_is_argmax_with_the_first_of_equals():
    scores = np.random.default_rng(0).integers(0, 4, (30, 20, 25)).astype(np.float32)
    np.testing.assert_array_equal(most_likely(scores), scores.argmax(-1))
    assert most_likely(scores).dtype == np.uint8
    np.testing.assert_array_equal(most_likely(scores[..., :1]), 0)
