"""Sampling under an affine map: SciPy's, in two and three axes, at every edge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from penn_jax.data.interpolate import sample
from penn_jax.types import IGNORE_LABEL


def _sizes(axes):
    shape = st.tuples(*[st.integers(1, 12)] * axes)
    return st.tuples(shape, shape, st.integers(0, 2**31 - 1))


SIZES = st.one_of(_sizes(2), _sizes(3))
"""Shapes of frame and result, and a seed: an axis may be a single voxel long."""


def _map(shape, size, seed):
    """A matrix with rotation, scaling and flips, whose result reaches past the edges."""
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(len(shape), len(shape))) * 0.4 - np.eye(len(shape))
    centre = (np.array(shape) - 1) / 2
    return matrix, centre - matrix @ ((np.array(size) - 1) / 2)


def sample_linear(frames, matrix, origin, size):
    sampled = np.empty((*size, len(frames) * frames.shape[-1]), np.float32)
    label = np.zeros(size, np.uint8)
    sample(frames, None, matrix, origin, sampled, label)
    assert (label == IGNORE_LABEL).all()
    return sampled


def sample_nearest(labels, matrix, origin, size):
    frames, image = np.zeros((1, *labels.shape, 1), np.float32), np.empty((*size, 1), np.float32)
    sampled = np.empty(size, np.uint8)
    sample(frames, labels, matrix, origin, image, sampled)
    return sampled


@given(SIZES)
def test_linear_is_scipys_frame_by_frame_and_channel_by_channel(drawn):
    shape, size, seed = drawn
    frames = np.random.default_rng(seed).normal(size=(3, *shape, 2)).astype(np.float32)
    matrix, origin = _map(shape, size, seed)
    found = sample_linear(frames, matrix, origin, size)
    for channel in range(6):
        expected = ndimage.affine_transform(
            frames[channel // 2, ..., channel % 2].astype(np.float64),
            matrix,
            offset=origin.tolist(),
            output_shape=size,
            order=1,
            mode="nearest",
        )
        # float32 weights and products: a few roundings of values of up to 5.
        np.testing.assert_allclose(found[..., channel], expected, atol=5e-6)


@given(SIZES)
def test_nearest_is_scipys_and_ignored_outside(drawn):
    shape, size, seed = drawn
    labels = np.random.default_rng(seed).integers(0, 5, shape).astype(np.uint8)
    matrix, origin = _map(shape, size, seed)
    found = sample_nearest(labels, matrix, origin, size)
    places = np.einsum("ij,j...->i...", matrix, np.indices(size)) + _column(origin, len(size))
    last = _column(np.array(shape) - 1, len(size))
    inside = np.all((places >= 0) & (places <= last), axis=0)
    nearest = ndimage.map_coordinates(labels, np.rint(places), order=0, mode="nearest")
    # Where a place is an edge or between two voxels, its last digit decides.
    doubtful = np.abs(2 * places - np.rint(2 * places)).min(axis=0) < 1e-9
    expected = np.where(inside, nearest, IGNORE_LABEL)
    np.testing.assert_array_equal(found[~doubtful], expected[~doubtful])


def _column(values, axes):
    return np.asarray(values).reshape(-1, *(1,) * axes)


def test_a_result_reaches_inside_and_outside():
    labels = np.zeros((40, 50), np.uint8)
    found = sample_nearest(labels, *_map((40, 50), (60, 70), 0), (60, 70))
    assert 0.05 < (found == IGNORE_LABEL).mean() < 0.95


@given(SIZES)
def test_few_places_are_doubtful(drawn):
    shape, size, seed = drawn
    matrix, origin = _map(shape, size, seed)
    places = np.einsum("ij,j...->i...", matrix, np.indices(size)) + _column(origin, len(size))
    # The middle of the frame is one, where a size is odd.
    doubtful = np.abs(2 * places - np.rint(2 * places)).min(axis=0) < 1e-9
    assert doubtful.sum() <= 1


def test_a_part_of_a_frame_need_not_lie_in_one_piece():
    whole = np.random.default_rng(7).normal(size=(2, 9, 10, 11, 2)).astype(np.float32)
    box = np.s_[:, 2:8, 1:9, 3:]
    matrix, origin = _map((6, 8, 8), (5, 6, 7), 1)
    arguments = (matrix, origin, (5, 6, 7))
    np.testing.assert_array_equal(
        sample_linear(whole[box], *arguments), sample_linear(whole[box].copy(), *arguments)
    )
    labels = whole[0, ..., 0].view(np.uint32).astype(np.uint8)
    part = labels[box[1:]]
    np.testing.assert_array_equal(
        sample_nearest(part, *arguments), sample_nearest(part.copy(), *arguments)
    )


def test_a_flip_gives_the_voxels_themselves():
    frame = np.random.default_rng(3).normal(size=(1, 7, 1, 12, 2)).astype(np.float32)
    labels = np.random.default_rng(4).integers(0, 5, frame.shape[1:-1]).astype(np.uint8)
    matrix, origin = np.diag([-1.0, 1.0, -1.0]), np.array([6.0, 0.0, 11.0])
    # The second axis has one voxel, which has no neighbour to be weighed with.
    flipped = np.s_[::-1, :, ::-1]
    found = sample_linear(frame, matrix, origin, (7, 1, 12))
    np.testing.assert_array_equal(found, frame[0][flipped])
    np.testing.assert_array_equal(
        sample_nearest(labels, matrix, origin, (7, 1, 12)), labels[flipped]
    )


@pytest.mark.parametrize("start", [(0, 0), (-3, 2), (4, -1), (-2, -2)])
def test_a_shift_gives_the_voxels_themselves_and_the_edge_beyond(start):
    frame = np.random.default_rng(5).normal(size=(1, 6, 8, 3)).astype(np.float32)
    labels = np.random.default_rng(6).integers(0, 5, (6, 8)).astype(np.uint8)
    matrix, origin, size = np.eye(2), np.array(start, np.float64), (9, 11)
    rows, columns = (np.arange(n) + a for n, a in zip(size, start, strict=True))
    inside = ((rows >= 0) & (rows < 6))[:, None] & ((columns >= 0) & (columns < 8))
    near = np.ix_(rows.clip(0, 5), columns.clip(0, 7))
    found = sample_linear(frame, matrix, origin, size)
    np.testing.assert_array_equal(found, frame[0][near])
    expected = np.where(inside, labels[near], np.uint8(IGNORE_LABEL))
    np.testing.assert_array_equal(sample_nearest(labels, matrix, origin, size), expected)
