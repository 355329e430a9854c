"""Sampling under an affine map: SciPy's, in bands, in two and three axes, at every edge."""

import numpy as np
import pytest
from scipy import ndimage

from penn_jax.data.interpolate import sample_linear, sample_nearest
from penn_jax.types import IGNORE_LABEL

CASES = {
    "one band": ((40, 50), (60, 70)),
    "bands of 40 rows and a rest": ((120, 90), (150, 200)),
    "bands of 6 planes and a rest": ((15, 30, 25), (20, 30, 40)),
    "bands of one plane": ((9, 80, 70), (3, 100, 90)),
}
"""Shapes of array and result; a band holds 8,192 voxels at most, and one row at least."""


def _map(shape, size, seed=0):
    """A matrix with rotation, scaling and flips, whose result reaches past every edge."""
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(len(shape), len(shape))) * 0.4 - np.eye(len(shape))
    centre = (np.array(shape) - 1) / 2
    return matrix, centre - matrix @ ((np.array(size) - 1) / 2)


@pytest.mark.parametrize(("shape", "size"), CASES.values(), ids=CASES)
def test_linear_is_scipys_channel_by_channel(shape, size):
    array = np.random.default_rng(1).normal(size=(*shape, 2)).astype(np.float32)
    matrix, origin = _map(shape, size)
    found = sample_linear(array, matrix, origin, size)
    assert found.dtype == np.float32
    for channel in range(2):
        expected = ndimage.affine_transform(
            array[..., channel].astype(np.float64),
            matrix,
            offset=origin,
            output_shape=size,
            order=1,
            mode="nearest",
        )
        # float32 weights and products: a few roundings of values of up to 5.
        np.testing.assert_allclose(found[..., channel], expected, atol=5e-6)


@pytest.mark.parametrize(("shape", "size"), CASES.values(), ids=CASES)
def test_nearest_is_scipys_and_ignored_outside(shape, size):
    labels = np.random.default_rng(2).integers(0, 5, shape).astype(np.uint8)
    matrix, origin = _map(shape, size)
    found = sample_nearest(labels, matrix, origin, size)
    expected = ndimage.affine_transform(
        labels,
        matrix,
        offset=origin,
        output_shape=size,
        order=0,
        mode="constant",
        cval=IGNORE_LABEL,
    )
    np.testing.assert_array_equal(found, expected)
    assert 0.05 < (found == IGNORE_LABEL).mean() < 0.95


def test_a_flip_gives_the_voxels_themselves():
    array = np.random.default_rng(3).normal(size=(7, 1, 12, 2)).astype(np.float32)
    labels = np.random.default_rng(4).integers(0, 5, array.shape[:-1]).astype(np.uint8)
    matrix, origin = np.diag([-1.0, 1.0, -1.0]), np.array([6.0, 0.0, 11.0])
    # The second axis has one voxel, which has no neighbour to be weighed with.
    flipped = np.s_[::-1, :, ::-1]
    np.testing.assert_array_equal(sample_linear(array, matrix, origin, (7, 1, 12)), array[flipped])
    np.testing.assert_array_equal(
        sample_nearest(labels, matrix, origin, (7, 1, 12)), labels[flipped]
    )


@pytest.mark.parametrize("start", [(0, 0), (-3, 2), (4, -1), (-2, -2)])
def test_a_shift_gives_the_voxels_themselves_and_the_edge_beyond(start):
    array = np.random.default_rng(5).normal(size=(6, 8, 3)).astype(np.float32)
    labels = np.random.default_rng(6).integers(0, 5, (6, 8)).astype(np.uint8)
    matrix, origin, size = np.eye(2), np.array(start, np.float64), (9, 11)
    rows, columns = (np.arange(n) + a for n, a in zip(size, start, strict=True))
    inside = ((rows >= 0) & (rows < 6))[:, None] & ((columns >= 0) & (columns < 8))
    near = np.ix_(rows.clip(0, 5), columns.clip(0, 7))
    np.testing.assert_array_equal(sample_linear(array, matrix, origin, size), array[near])
    expected = np.where(inside, labels[near], np.uint8(IGNORE_LABEL))
    np.testing.assert_array_equal(sample_nearest(labels, matrix, origin, size), expected)
