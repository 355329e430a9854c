"""Photometric augmentation: random changes of intensity, keyed by the sample, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from penn_jax.config import PhotometryConfig


def augment(
    image: Float[Array, "B *spatial C"], sample_keys: Key[Array, " B"], config: PhotometryConfig
) -> Float[Array, "B *spatial C"]:
    """Change gain, offset, gamma, bias field and noise of each sample, by its own key.

    Every channel of a sample gets the same change but for the noise: neighbouring slices come
    from one scan. A strength of zero leaves its part out.
    """
    return jax.vmap(lambda x, key: _augment_one(x, key, config))(image, sample_keys)


def _augment_one(
    x: Float[Array, "*spatial C"], key: Key[Array, ""], config: PhotometryConfig
) -> Float[Array, "*spatial C"]:
    gamma_key, field_key, gain_key, offset_key, level_key, noise_key = jax.random.split(key, 6)

    def uniform(key: Key[Array, ""], most: float) -> Float[Array, ""]:
        return jax.random.uniform(key, (), minval=-most, maxval=most)

    if config.gamma:
        low, high = jnp.min(x), jnp.max(x)
        width = jnp.maximum(high - low, 1e-6)
        # The floor keeps the power's gradient-free logarithm finite at the darkest voxel.
        unit = jnp.maximum((x - low) / width, 1e-6)
        x = unit ** jnp.exp(uniform(gamma_key, config.gamma)) * width + low
    if config.bias_field:
        # The field multiplies intensity above the darkest voxel, as a coil's sensitivity does.
        low = jnp.min(x)
        x = (x - low) * jnp.exp(config.bias_field * _smooth_field(field_key, x.shape[:-1])) + low
    if config.gain:
        x = x * jnp.exp(uniform(gain_key, config.gain))
    if config.offset:
        x = x + uniform(offset_key, config.offset)
    if config.noise:
        level = jax.random.uniform(level_key, (), maxval=config.noise)
        x = x + level * jax.random.normal(noise_key, x.shape, x.dtype)
    return x


def _smooth_field(key: Key[Array, ""], spatial: tuple[int, ...]) -> Float[Array, "*spatial 1"]:
    """A random polynomial of degree two in the coordinates, coefficients uniform in ± 1."""
    axes = len(spatial)
    coefficients = jax.random.uniform(key, (2, axes), minval=-1.0, maxval=1.0)
    field = jnp.zeros((1,) * axes)
    for axis, size in enumerate(spatial):
        shape = [1] * axes
        shape[axis] = size
        t = jnp.linspace(-1.0, 1.0, size).reshape(shape)
        field = field + coefficients[0, axis] * t + coefficients[1, axis] * (t**2 - 1.0 / 3.0)
    return field[..., None]
