"""Photometric augmentation: what it must and must not change."""

import jax
import jax.numpy as jnp
import numpy as np

from penn_jax.config import PhotometryConfig
from penn_jax.model.augment import augment

OFF = PhotometryConfig(gain=0, offset=0, gamma=0, noise=0, bias_field=0)


def _images(channels=1):
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 24, 24, channels)), jnp.float32)


def test_everything_off_is_the_identity():
    x = _images()
    np.testing.assert_array_equal(augment(x, jax.random.split(jax.random.key(0), 4), OFF), x)


def test_each_sample_follows_its_own_key_whatever_its_place():
    x, keys = _images(), jax.random.split(jax.random.key(1), 4)
    config = PhotometryConfig()
    together = np.array(augment(x, keys, config))
    for i in range(4):
        alone = augment(x[i : i + 1], keys[i : i + 1], config)
        np.testing.assert_allclose(alone[0], together[i], atol=1e-6)
    assert np.abs(together - np.array(x)).min(axis=(1, 2, 3)).max() > 0


def test_gamma_keeps_the_order_and_the_extremes():
    x, keys = _images(), jax.random.split(jax.random.key(2), 4)
    y = np.array(augment(x, keys, PhotometryConfig(0, 0, 0.5, 0, 0)))
    for before, after in zip(np.array(x), y, strict=True):
        order = np.argsort(before.ravel())
        assert (np.diff(after.ravel()[order]) >= -1e-6).all()  # a power of base 0..1 is monotone
        # The floor of 1e-6 under the power moves the darkest voxel by (1e-6)^exp(-0.5)·width.
        ends = [before.min(), before.max()]
        np.testing.assert_allclose([after.min(), after.max()], ends, atol=2e-3)


def test_gain_and_offset_are_within_their_ranges():
    x = _images()
    keys = jax.random.split(jax.random.key(3), 4)
    y = np.array(augment(x, keys, PhotometryConfig(0.2, 0.3, 0, 0, 0)))
    for before, after in zip(np.array(x), y, strict=True):
        slope, intercept = np.polyfit(before.ravel(), after.ravel(), 1)
        assert np.exp(-0.2) <= slope <= np.exp(0.2)
        assert abs(intercept) <= 0.3 + 1e-5
        np.testing.assert_allclose(before * slope + intercept, after, atol=1e-4)


def test_neighbouring_slices_share_all_but_the_noise():
    x = jnp.repeat(_images(), 3, axis=-1)
    keys = jax.random.split(jax.random.key(4), 4)
    same = np.array(augment(x, keys, PhotometryConfig(noise=0)))
    np.testing.assert_array_equal(same[..., 0], same[..., 2])
    noisy = np.array(augment(x, keys, PhotometryConfig(0, 0, 0, 0.1, 0)))
    difference = noisy[..., 0] - noisy[..., 2]
    assert difference.std() > 0
    assert np.abs(noisy - np.array(x)).std() < 0.1


def test_constant_image_stays_finite():
    x = jnp.full((1, 8, 8, 1), 3.0)
    gradient = jax.grad(
        lambda x: augment(x, jax.random.split(jax.random.key(0), 1), PhotometryConfig()).sum()
    )(x)
    assert np.isfinite(gradient).all()


def test_bias_field_is_a_smooth_factor_above_the_darkest_voxel():
    x = jnp.asarray(np.random.default_rng(1).uniform(1.0, 2.0, (2, 24, 24, 1)), jnp.float32)
    x = x.at[:, 0, 0].set(0.0)
    y = np.array(
        augment(x, jax.random.split(jax.random.key(6), 2), PhotometryConfig(0, 0, 0, 0, 0.3))
    )
    logarithm = np.log(y[:, 1:, 1:, 0] / np.array(x)[:, 1:, 1:, 0])
    # Degree two in each coordinate: third differences vanish; somewhere the field does something.
    for axis in (1, 2):
        assert np.abs(np.diff(logarithm, n=3, axis=axis)).max() < 1e-5
    assert np.abs(logarithm).max() > 0.02
    # Four coefficients in ± 1: |t| ≤ 1 and |t² - 1/3| ≤ 2/3, so at most 2·(1 + 2/3)·0.3.
    assert np.abs(logarithm).max() <= 0.3 * 2 * (1 + 2 / 3) + 1e-5
