"""Corruption of patches that the network learns to undo, keyed by the sample, on the device."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from penn_jax.config import PretrainConfig

_MOST_BOXES = 5
_PAINTED_SIDE = (1 / 6, 1 / 3)
"""Sides of the boxes that are painted over, as shares of the patch's."""
_KEPT_SHARE = (1 / 4, 1 / 2)
"""Volumes of the boxes that painting leaves, added up, as a share of the patch's."""
_KEPT_SPREAD = (0.9, 1.1)
"""Their sides differ from one another by these factors."""


def corrupt(
    image: Float[Array, "B *spatial C"], sample_keys: Key[Array, " B"], config: PretrainConfig
) -> tuple[Float[Array, "B *spatial C"], Bool[Array, "B *spatial 1"]]:
    """Bend intensities, add noise, shuffle, paint over and mask: each sample by its own key.

    In this order: what alters intensities comes first, so that it acts on the scan alone and not
    on what is painted; what hides them comes last, so that nothing of them is left where they
    are hidden. A share of zero leaves its part out, and no part's draws depend on another's.

    Args:
        image: intensities normalised to mean 0 and deviation 1 over the scan. All channels of a
            sample are corrupted in the same places and by the same curve: neighbouring slices
            come from one scan and would give each other away.
        sample_keys: one for each sample.
        config: the parts; fixed when the step is compiled.

    Returns:
        What the network sees, and the voxels it is asked to restore: all whose channels were
        altered, moved or hidden, whether or not they kept their value by chance.

    Reference:
        Zhou et al., "Models Genesis", 2021 (curve, shuffling, painting); Brempong et al.,
        "Denoising pretraining for semantic segmentation", 2022 (noise); He et al., "Masked
        autoencoders are scalable vision learners", 2022 (masking).
    """
    part_keys = jax.vmap(lambda key: jax.random.split(key, 5))(sample_keys)
    x, changed = jax.vmap(lambda x, keys: _corrupt_one(x, keys, config))(image, part_keys[:, :4])
    if config.masked:
        hidden = block_masks(part_keys[:, 4], image.shape[1:-1], config)[..., None]
        # Zero is the mean of a normalised scan.
        x, changed = jnp.where(hidden, 0.0, x), changed | hidden
    return x, changed


def block_masks(
    keys: Key[Array, " B"], spatial: tuple[int, ...], config: PretrainConfig
) -> Bool[Array, "B *spatial"]:
    """Draw for each sample which blocks of its patch are hidden (True)."""
    blocks = tuple(-(-size // config.block) for size in spatial)
    hidden = jax.vmap(lambda key: jax.random.bernoulli(key, config.masked, blocks))(keys)
    for axis in range(1, hidden.ndim):
        hidden = jnp.repeat(hidden, config.block, axis=axis)
    return hidden[(slice(None), *(slice(0, size) for size in spatial))]


def _corrupt_one(
    x: Float[Array, "*spatial C"], part_keys: Key[Array, "4"], config: PretrainConfig
) -> tuple[Float[Array, "*spatial C"], Bool[Array, "*spatial 1"]]:
    """All parts but the masks."""
    curve_key, noise_key, shuffle_key, paint_key = part_keys
    changed = jnp.zeros((*x.shape[:-1], 1), bool)
    if config.curved:
        x, curved = _curve(x, curve_key, config.curved)
        changed = changed | curved
    if config.noise:
        x = x + config.noise * jax.random.normal(noise_key, x.shape, x.dtype)
        changed = jnp.ones_like(changed)
    if config.shuffled:
        x, moved = _shuffle(x, shuffle_key, config.shuffled, config.block)
        changed = changed | moved
    if config.inpainted or config.outpainted:
        x, painted = _paint(x, paint_key, config.inpainted, config.outpainted)
        changed = changed | painted
    return x, changed


def _curve(
    x: Float[Array, "*spatial C"], key: Key[Array, ""], share: float
) -> tuple[Float[Array, "*spatial C"], Bool[Array, ""]]:
    """Bend the intensities u, scaled to 0..1 over the patch, along a random cubic Bézier curve.

        y = 3 (1 - u)² u a + 3 (1 - u) u² b + u³,  a, b ~ uniform(0, 1),  u ← 1 - u in half of them

    The inner control points stand at the thirds of the range, which makes the curve a polynomial
    in u; it is monotone because a and b lie between the ends 0 and 1, and keeps the range.
    """
    chosen, rising, a, b = jax.random.uniform(key, (4,), x.dtype)
    low, high = jnp.min(x), jnp.max(x)
    width = jnp.maximum(high - low, 1e-6)
    u = (x - low) / width
    u = jnp.where(rising < 0.5, u, 1 - u)
    y = 3 * (1 - u) ** 2 * u * a + 3 * (1 - u) * u**2 * b + u**3
    return jnp.where(chosen < share, y * width + low, x), chosen < share


def _shuffle(
    x: Float[Array, "*spatial C"], key: Key[Array, ""], share: float, block: int
) -> tuple[Float[Array, "*spatial C"], Bool[Array, "*spatial 1"]]:
    """Permute the voxels of some blocks among themselves, all channels together.

    A block is no longer than the patch; what whole blocks leave over at the far border stays.
    """
    block_key, order_key = jax.random.split(key)
    sides = tuple(min(block, size) for size in x.shape[:-1])
    counts = tuple(size // side for size, side in zip(x.shape[:-1], sides, strict=True))
    whole = tuple(slice(0, count * side) for count, side in zip(counts, sides, strict=True))
    blocks, voxels = math.prod(counts), math.prod(sides)
    chosen, start = jax.random.uniform(block_key, (2, blocks, 1))
    start = (start * voxels).astype(int)
    # One permutation for the patch, begun anywhere in each block, is uniform within a block as
    # one of its own would be, and spares sorting the whole patch.
    order = jax.random.permutation(order_key, voxels)
    place = jnp.arange(voxels)[None]
    place = jnp.where(chosen < share, order[(place + start) % voxels], place)
    shuffled = jnp.take_along_axis(_to_blocks(x[whole], counts, sides), place[..., None], axis=1)
    moved = jnp.broadcast_to(chosen[..., None] < share, (blocks, voxels, 1))
    return (
        x.at[whole].set(_from_blocks(shuffled, counts, sides)),
        jnp.zeros((*x.shape[:-1], 1), bool).at[whole].set(_from_blocks(moved, counts, sides)),
    )


def _to_blocks(x: Array, counts: tuple[int, ...], sides: tuple[int, ...]) -> Array:
    """Cut (*spatial, C) into (blocks, voxels, C)."""
    axes = len(sides)
    apart = [length for pair in zip(counts, sides, strict=True) for length in pair]
    x = x.reshape(*apart, x.shape[-1])
    x = x.transpose(*range(0, 2 * axes, 2), *range(1, 2 * axes, 2), 2 * axes)
    return x.reshape(math.prod(counts), math.prod(sides), x.shape[-1])


def _from_blocks(x: Array, counts: tuple[int, ...], sides: tuple[int, ...]) -> Array:
    """The inverse of ``_to_blocks``."""
    axes = len(sides)
    x = x.reshape(*counts, *sides, x.shape[-1])
    x = x.transpose(*(axis + side for axis in range(axes) for side in (0, axes)), 2 * axes)
    together = [count * side for count, side in zip(counts, sides, strict=True)]
    return x.reshape(*together, x.shape[-1])


def _paint(
    x: Float[Array, "*spatial C"], key: Key[Array, ""], inpainted: float, outpainted: float
) -> tuple[Float[Array, "*spatial C"], Bool[Array, "*spatial 1"]]:
    """Replace a few boxes, or all but a few, by uniform noise over the range of the patch."""
    draw_key, box_key, noise_key = jax.random.split(key, 3)
    spatial = x.shape[:-1]
    # One draw from both ends: no patch is painted both ways while the shares add up to one.
    chosen, number, share = jax.random.uniform(draw_key, (3,))
    number = 1 + jnp.floor(number * _MOST_BOXES)
    painted = jnp.zeros(spatial, bool)
    if inpainted:
        boxes = _boxes(box_key, spatial, number, *_PAINTED_SIDE)
        painted = painted | ((chosen < inpainted) & boxes)
    if outpainted:
        least, most = _KEPT_SHARE
        side = ((least + (most - least) * share) / number) ** (1 / len(spatial))
        boxes = _boxes(box_key, spatial, number, *(factor * side for factor in _KEPT_SPREAD))
        painted = painted | ((chosen >= 1 - outpainted) & ~boxes)
    painted = painted[..., None]
    noise = jax.random.uniform(noise_key, x.shape, x.dtype, jnp.min(x), jnp.max(x))
    return jnp.where(painted, noise, x), painted


def _boxes(
    key: Key[Array, ""],
    spatial: tuple[int, ...],
    number: Float[Array, ""],
    least: float | Float[Array, ""],
    most: float | Float[Array, ""],
) -> Bool[Array, "*spatial"]:
    """The voxels inside some boxes that lie anywhere in the patch.

    Args:
        key: decides sides and places.
        spatial: size of the patch.
        number: how many boxes, at most ``_MOST_BOXES``.
        least, most: bounds of a box's side along each axis, as a share of the patch's.
    """
    side, start = jax.random.uniform(key, (2, _MOST_BOXES, len(spatial)))
    side = least + (most - least) * side
    start = start * (1 - side)
    drawn = jnp.arange(0.0, _MOST_BOXES) < number
    factors = []
    for axis, size in enumerate(spatial):
        centre = jnp.arange(0.5, size)[None] / size
        first, last = start[:, axis, None], (start + side)[:, axis, None]
        along = drawn[:, None] & (first <= centre) & (centre < last)
        factors += [along.astype(side.dtype), (0, axis + 1)]
    # Count the boxes around each voxel: a sum of outer products, which is a matrix product.
    return jnp.einsum(*factors, range(1, len(spatial) + 1)) > 0
