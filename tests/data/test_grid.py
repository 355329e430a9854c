from itertools import pairwise, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter, zoom

from penn_jax.data import grid as grid_module
from penn_jax.data.grid import (
    FrameGrid,
    block_from_frames,
    from_frames,
    normalise,
    oriented,
    plan_frames,
    to_frames,
)

# The 48 ways to store a volume along the canonical axes: 6 orders × 8 directions.
ORIENTATIONS = [
    np.array(list(zip(axes, signs, strict=True)))
    for axes in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


def affine_of(orientation: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for file_axis, (axis, sign) in enumerate(orientation):
        affine[int(axis), file_axis] = sign * spacing[file_axis]
    return affine


def plan(shape, spacing, dimensions=2, target=None, orientation=ORIENTATIONS[0]) -> FrameGrid:
    return plan_frames(shape, affine_of(orientation, spacing), orientation, dimensions, target)


@given(
    orientation=st.sampled_from(ORIENTATIONS),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    dimensions=st.sampled_from((2, 3)),
    order=st.sampled_from((0, 1)),
    channels=st.sampled_from(((), (1,), (2,))),
    seed=st.integers(0, 99),
)
def test_frames_and_back_is_the_identity(
    orientation, shape, spacing, dimensions, order, channels, seed
):
    array = np.random.default_rng(seed).normal(size=(*shape, *channels)).astype(np.float32)
    grid = plan(shape, spacing, dimensions, None, orientation)
    frames = to_frames(array, grid, order)
    assert frames.shape == (*grid.shape, *channels)
    np.testing.assert_array_equal(from_frames(frames, grid, order), array)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_gives_the_same_canonical_frames(orientation):
    canonical = np.arange(2 * 3 * 4).reshape(2, 3, 4)  # R, A, S
    axes, signs = orientation[:, 0].astype(int), orientation[:, 1]
    # Stored by hand: file axis k runs along canonical axis axes[k], backwards if its sign is -1.
    stored = canonical.transpose(*axes)[tuple(slice(None, None, int(s)) for s in signs)]
    spacing = tuple(np.array([1.0, 5.0, 1.0])[axes])
    whole = to_frames(stored, plan(stored.shape, spacing, 3, None, orientation), 0)
    np.testing.assert_array_equal(whole, canonical[None])
    # The second canonical axis is the coarsest: frames are (A; R, S).
    slices = to_frames(stored, plan(stored.shape, spacing, 2, None, orientation), 0)
    np.testing.assert_array_equal(slices, canonical.transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((9, 9, 9), (4.0, 1.0, 1.0), 0),
        ((9, 9, 9), (1.0, 4.0, 4.0), 2),
        ((9, 9, 9), (1.0, 1.0, 1.0), 2),
        ((9, 9, 9), (1.005, 1.0, 1.0), 2),  # within 1 %: a tie
        ((9, 9, 9), (1.02, 1.0, 1.0), 0),
        ((9, 1, 9), (4.0, 1.0, 1.0), 1),
        ((1, 9, 1), (1.0, 5.0, 1.0), 2),
        ((1, 9, 1), (2.0, 5.0, 1.0), 0),
    ],
)
def test_slice_axis(shape, spacing, axis):
    assert plan(shape, spacing).axes[0] == axis


def test_size_and_spacing_of_resampled_frames():
    grid = plan((10, 20, 4), (1.0, 0.6, 4.0), target=(0.7, 0.605))
    # round(10 · 1 / 0.7) = 14; 0.6 is within 1 % of 0.605 and stays as it is.
    assert grid.shape == (4, 14, 20)
    assert grid.spacing == pytest.approx((10 / 14, 0.6))
    assert plan((10, 20, 4), (1.0, 1.0, 4.0), target=(100.0, 1.0)).shape == (4, 1, 20)
    with pytest.raises(ValueError, match="2 axes"):
        plan((10, 20, 4), (1.0, 1.0, 4.0), target=(1.0, 1.0, 1.0))


@pytest.mark.parametrize(("size", "target"), [((7, 9), (13, 11)), ((7, 9), (8, 20))])
def test_enlarging_is_pytorch_half_pixel_interpolation(size, target):
    image = np.random.default_rng(0).normal(size=(*size, 3)).astype(np.float32)
    spacing = tuple(n / t for n, t in zip(size, target, strict=True))
    grid = plan((*size, 3), (1.0, 1.0, 9.0), target=spacing)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image.transpose(2, 0, 1))[None], size=target, mode="bilinear"
    )[0].numpy()
    np.testing.assert_allclose(to_frames(image, grid, 1), expected, atol=5e-6)
    nearest = torch.nn.functional.interpolate(
        torch.from_numpy(image.transpose(2, 0, 1))[None], size=target, mode="nearest-exact"
    )[0].numpy()
    np.testing.assert_array_equal(to_frames(image, grid, 0), nearest)


def test_shrinking_is_that_of_scipy_after_a_gaussian():
    image = np.random.default_rng(0).normal(size=(30, 24, 1)).astype(np.float32)
    grid = plan(image.shape, (1.0, 1.0, 9.0), target=(3.0, 2.0))
    smooth = gaussian_filter(
        image[..., 0].astype(float), ((3 - 1) / 2, (2 - 1) / 2), mode="nearest"
    )
    expected = zoom(smooth, (1 / 3, 1 / 2), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(to_frames(image, grid, 1)[0], expected, atol=1e-5)
    labels = (image > 0).astype(np.uint8)
    shrunk = to_frames(labels, grid, 0)
    assert shrunk.dtype == np.uint8
    # Shrinking by 3 takes the middle voxel of three, by 2 the second of two.
    np.testing.assert_array_equal(shrunk[0], labels[1::3, 1::2, 0])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_probabilities_come_back_to_the_native_shape_and_still_sum_to_one(dimensions):
    shape = (11, 6, 13)
    grid = plan(shape, (1.0, 3.0, 1.3), dimensions, (0.8, 1.0, 1.0)[:dimensions])
    frames = np.random.default_rng(0).dirichlet((1, 1, 1), grid.shape).astype(np.float32)
    back = from_frames(frames, grid, 1)
    assert back.shape == (*shape, 3)
    np.testing.assert_allclose(back.sum(-1), 1, atol=1e-5)


def test_resampling_there_and_back_keeps_a_ramp():
    ramp = np.broadcast_to(np.linspace(0, 1, 40)[:, None, None], (40, 8, 3)).astype(np.float32)
    grid = plan(ramp.shape, (1.0, 1.0, 5.0), target=(0.63, 1.7))
    back = from_frames(to_frames(ramp, grid, 1), grid, 1)
    # Linear interpolation is exact on a ramp, but for the half voxel clamped at each end.
    np.testing.assert_allclose(back[2:-2], ramp[2:-2], atol=1e-5)


def test_arrays_of_another_grid_are_refused():
    grid = plan((4, 5, 6), (1.0, 1.0, 2.0))
    with pytest.raises(ValueError, match="grid of"):
        to_frames(np.zeros((4, 5, 7)), grid, 1)
    with pytest.raises(ValueError, match="frames of"):
        from_frames(np.zeros((6, 4, 4)), grid, 1)


def test_normalise_by_hand():
    # 1000 voxels: percentiles by np.percentile in float64, the rest by the formula.
    values = np.random.default_rng(0).gamma(2, 100, (10, 10, 10, 1))
    low, high = np.percentile(values, (0.5, 99.5))
    clipped = values.clip(low, high)
    body = clipped[clipped > low + 0.05 * (high - low)]
    expected = (clipped - body.mean()) / body.std()
    found = normalise(values.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


@settings(max_examples=50)
@given(
    frames=arrays(np.int32, (2, 5, 5, 2), elements=st.integers(0, 1000)),
    scale=st.integers(1, 500),
    shift=st.integers(-5000, 5000),
)
def test_normalise_ignores_scale_and_offset(frames, scale, shift):
    # Whole numbers below 2^24 are exact in float32, so both images hold the same information.
    for channel in np.moveaxis(frames, -1, 0):
        low, high = np.percentile(channel, (0.5, 99.5))
        low, high = (channel.min(), channel.max()) if low == high else (low, high)
        distance = np.abs(channel - (low + 0.05 * (high - low)))
        assume(low == high or distance.min() > 1e-3 * (high - low))  # not on the threshold itself
    found, expected = normalise(frames * scale + shift), normalise(frames)
    np.testing.assert_allclose(found, expected, atol=2e-3, rtol=2e-3)


def test_normalise_leaves_each_channel_to_itself():
    rng = np.random.default_rng(0)
    first, second = rng.gamma(2, 1, (2, 3, 20, 20, 1))
    both = normalise(np.concatenate((first, 7 * second), axis=-1))
    np.testing.assert_array_equal(both[..., :1], normalise(first))
    np.testing.assert_allclose(both[..., 1:], normalise(second), atol=1e-5)


def test_normalise_of_poor_images_is_finite():
    assert not normalise(np.full((1, 4, 4, 1), 7)).any()
    spot = np.zeros((1, 100, 100, 1))
    spot[0, 50, 50:53] = [[1], [2], [3]]  # too small for the percentiles
    found = normalise(spot)
    assert np.isfinite(found).all()
    assert len(np.unique(found)) == 4
    two = np.zeros((1, 10, 10, 1))
    two[0, :5] = 1  # a body without spread: mean 1/2 and deviation 1/2 of all voxels
    np.testing.assert_allclose(np.unique(normalise(two)), (-1, 1), atol=1e-6)


@given(
    orientation=st.sampled_from(ORIENTATIONS),
    shape=st.tuples(*[st.integers(2, 30)] * 3),
    target=st.tuples(*[st.floats(0.3, 4)] * 3),
    dimensions=st.sampled_from((2, 3)),
    cuts=st.tuples(*[st.lists(st.integers(1, 90), max_size=3)] * 3),
)
def test_blocks_make_up_the_frames_on_the_grid_of_the_file(
    orientation, shape, target, dimensions, cuts
):
    grid = plan(shape, (1.0, 1.1, 1.2), dimensions, target[:dimensions], orientation)
    scores = np.random.default_rng(0).normal(size=(*grid.shape, 2)).astype(np.float32)
    result, times = np.zeros((*shape, 2), np.float32), np.zeros(shape, int)
    bounds = [
        sorted({0, size, *(cut for cut in along if cut < size)})
        for size, along in zip(grid.shape[1:], cuts, strict=False)
    ]
    for frame in range(grid.shape[0]):
        for box in product(*([slice(a, b) for a, b in pairwise(axis)] for axis in bounds)):
            reach = tuple(
                slice(max(0, part.start - margin), min(size, part.stop + margin))
                for part, margin, size in zip(box, grid.margins, grid.shape[1:], strict=True)
            )
            values, where = block_from_frames(scores[(frame, *reach)], reach, box, grid)
            oriented(result, grid)[(frame, *where)] = values
            oriented(times, grid)[(frame, *where)] += 1
    assert (times == 1).all()
    np.testing.assert_array_equal(result, from_frames(scores, grid, 1))


def test_resampling_in_pieces_is_resampling_at_once(monkeypatch):
    image = np.random.default_rng(0).normal(size=(17, 13, 9, 1)).astype(np.float32)
    grid = plan(image.shape[:3], (1.0, 1.0, 1.0), 3, (0.7, 2.5, 1.3))
    whole = to_frames(image, grid, 1)
    monkeypatch.setattr(grid_module, "_CHUNK", 500)
    np.testing.assert_array_equal(to_frames(image, grid, 1), whole)


def test_what_is_written_to_the_oriented_view_is_in_the_array():
    orientation = np.array([[1, -1], [2, 1], [0, -1]])
    array = np.zeros((2, 3, 4))
    grid = plan(array.shape, (1.0, 1.0, 1.0), 3, None, orientation)
    oriented(array, grid)[0, 0, 0, 0] = 1
    # Right of all, front of all, lowest: the last voxel of file axis 2 (against R), the last of
    # file axis 0 (against A) and the first of file axis 1.
    assert array[-1, 0, -1] == 1
    assert array.sum() == 1
