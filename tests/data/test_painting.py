import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penn_jax.data.painting import Blob, cover, distance_to_blobs, rounded_box, smooth_field
from penn_jax.data.spine import Chart


def test_the_volume_of_a_blob_is_that_of_an_ellipsoid():
    rng = np.random.default_rng(0)
    axes = tuple(np.arange(-30, 30.1, 1.5) for _ in range(3))
    zero = np.zeros((41, 41), np.float32)
    chart = Chart(
        axes=axes,
        along=(zero + axes[2]).astype(np.float32),
        behind=(zero - axes[1][:, None]).astype(np.float32),
        beside=(np.zeros((41, 41, 41)) + axes[0][:, None, None]).astype(np.float32),
        under_skin=zero,
        edge=1.5,
        slab=1.5,
    )
    radii = rng.uniform(8, 20, 3)
    distance = distance_to_blobs(chart, [Blob(0.0, 0.0, 0.0, *radii)])
    # The surface is nearest to the middle along the shortest axis.
    np.testing.assert_allclose(distance[20, 20, 20], -radii.min(), rtol=1e-5)
    share = cover(distance, chart.edge)
    np.testing.assert_allclose(share.sum() * 1.5**3, 4 / 3 * np.pi * radii.prod(), rtol=0.02)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(2, 30))
def test_a_random_field_has_variance_one_at_every_point(seed, scale):
    # The variance over 400 draws has a relative standard deviation of √(2/399) = 0.07; 5 of them.
    rng = np.random.default_rng(seed)
    points = [np.array([0.0, 3.3]), np.array([1.0, 50.0])]
    draws = np.stack([smooth_field(rng, points, scale) for _ in range(400)])
    np.testing.assert_allclose(draws.var(axis=0), 1, atol=0.4)


def test_the_rounded_box_measures_distance():
    a = np.array([-3.0, 2.0, 3.0, -5.0], np.float32)
    b = np.array([-4.0, -9.0, 4.0, 1.5], np.float32)
    # Inside: to the nearer side. Outside a side: straight. At the corner with radius 0: 3-4-5.
    np.testing.assert_allclose(rounded_box(a, b, 0.0), [-3, 2, 5, 1.5])
    # The circle of radius 2 around (−2, −2): its distance to the corner (0, 0) is √8 − 2.
    corner = rounded_box(np.zeros(1), np.zeros(1), 2.0)
    np.testing.assert_allclose(corner, np.sqrt(8) - 2)
