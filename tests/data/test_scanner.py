import numpy as np

from penn_jax.data.scanner import draw_pose, rician


def test_noise_in_air_has_the_moments_of_the_rayleigh_distribution():
    sigma = 0.7
    air = rician(np.random.default_rng(0), np.zeros((100, 100, 30), np.float32), sigma)
    assert air.dtype == np.float32
    assert air.min() >= 0
    # Mean σ√(π/2), variance (2 − π/2)σ²; the mean's standard error is 0.65 σ/√300,000 = 0.0008.
    np.testing.assert_allclose(air.mean(), sigma * np.sqrt(np.pi / 2), atol=0.004)
    np.testing.assert_allclose(air.var(), (2 - np.pi / 2) * sigma**2, rtol=0.02)


def test_noise_on_a_strong_signal_has_the_second_moment_of_the_rice_distribution():
    signal = np.full((60, 60, 60), 3.0, np.float32)
    noisy = rician(np.random.default_rng(1), signal, 0.5)
    # E|A + σn|² = A² + 2σ² = 9.5.
    np.testing.assert_allclose((noisy.astype(np.float64) ** 2).mean(), 9.5, rtol=0.005)


def test_the_pose_is_a_small_rotation():
    for seed in range(20):
        pose = draw_pose(np.random.default_rng(seed))
        rotation = pose[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) > 0
        # Three turns of at most 10 degrees each.
        assert np.trace(rotation) >= 1 + 2 * np.cos(np.deg2rad(30))
