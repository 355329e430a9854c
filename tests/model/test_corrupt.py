"""Corruption: what each part changes, what it says it changed, and how often."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from penn_jax.config import PretrainConfig
from penn_jax.model.corrupt import block_masks, corrupt

PARTS = {"masked": 0.4, "shuffled": 0.4, "curved": 0.3, "inpainted": 0.3, "outpainted": 0.3}
OFF = PretrainConfig(block=8, masked=0.0)
ALL = replace(OFF, **PARTS)
SIZES = [(30, 40), (12, 17, 20)]  # neither is a multiple of the block
SAMPLES = 256

_jitted = jax.jit(corrupt, static_argnames="config")


def _only(part):
    return replace(OFF, **{part: PARTS[part]})


def _keys(samples=SAMPLES, seed=0):
    return jax.random.split(jax.random.key(seed), samples)


def _run(x, config, keys=None):
    """What becomes of a batch, and the changed voxels, as arrays of NumPy."""
    keys = _keys(len(x)) if keys is None else keys
    with jax.numpy_dtype_promotion("strict"):
        y, changed = _jitted(jnp.asarray(x), keys, config=config)
    return np.array(y), np.array(changed)


def _images(size):
    """Normal intensities; the second channel is the first with its sign changed."""
    x = np.random.default_rng(0).normal(size=(SAMPLES, *size, 1)).astype(np.float32)
    return np.concatenate([x, -x], axis=-1)


def _corrupted(config, size=(30, 40)):
    x = _images(size)
    return x, *_run(x, config)


def _chosen(changed):
    """The patches in which anything changed."""
    return changed.any(axis=tuple(range(1, changed.ndim)))


def _blocks(x, side):
    """(samples, blocks, voxels, C) of the whole blocks of (samples, *spatial, C)."""
    counts = [size // side for size in x.shape[1:-1]]
    corners = np.ndindex(*counts)
    slices = [tuple(slice(i * side, (i + 1) * side) for i in corner) for corner in corners]
    return np.stack([x[(slice(None), *s)].reshape(len(x), -1, x.shape[-1]) for s in slices], axis=1)


def _assert_share(chosen, share):
    """The count lies within the binomial's central 1 - 1e-6."""
    least, most = stats.binom.interval(1 - 1e-6, chosen.size, share)
    assert least <= chosen.sum() <= most


@pytest.mark.parametrize("size", SIZES)
def test_everything_off_is_the_identity(size):
    x, y, changed = _corrupted(OFF, size)
    np.testing.assert_array_equal(y, x)
    assert not changed.any()


def test_eager_and_jitted_agree():
    x, jitted, jitted_changed = _corrupted(ALL)
    eager, eager_changed = corrupt(jnp.asarray(x), _keys(), ALL)
    np.testing.assert_allclose(eager, jitted, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(eager_changed, jitted_changed)


def test_each_sample_follows_its_own_key_whatever_its_place():
    x, together, changed = _corrupted(ALL)
    turned, turned_changed = _run(x[::-1], ALL, _keys()[::-1])
    np.testing.assert_allclose(turned[::-1], together, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(turned_changed[::-1], changed)
    for i in (0, 5, 255):
        alone, alone_changed = _run(x[i : i + 1], ALL, _keys()[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], rtol=2e-6, atol=2e-6)
        np.testing.assert_array_equal(alone_changed[0], changed[i])
    other, _ = _run(x, ALL, _keys(seed=1))
    assert (np.abs(other - together).max(axis=(1, 2, 3)) > 0.1).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("part", PARTS)
def test_voxels_not_reported_are_bit_equal_and_most_reported_ones_differ(part, size):
    x, y, changed = _corrupted(_only(part), size)
    np.testing.assert_array_equal(np.where(changed, 0, y), np.where(changed, 0, x))
    # A shuffled voxel stays at home with probability 1/64; a curve meets the diagonal twice.
    assert (y != x).any(axis=-1, keepdims=True)[changed].mean() > 0.95


def test_parts_draw_independently_of_one_another():
    alone = [_corrupted(_only(part))[2] for part in PARTS]
    together = _corrupted(ALL)[2]
    np.testing.assert_array_equal(together, np.any(alone, axis=0))


def test_masked_voxels_are_zero_whatever_else_is_on():
    _, y, hidden = _corrupted(_only("masked"))
    np.testing.assert_array_equal((y == 0).all(axis=-1, keepdims=True), hidden)
    _, y, changed = _corrupted(ALL)
    np.testing.assert_array_equal((y == 0).all(axis=-1, keepdims=True), hidden)
    assert changed[hidden].all()


def test_masked_blocks_follow_the_sample_and_have_the_asked_share():
    masks = np.array(block_masks(_keys(64), (30, 40), _only("masked")))
    assert masks.shape == (64, 30, 40)
    blocks = _blocks(masks[..., None], 8)
    assert (blocks == blocks[:, :, :1]).all()
    _assert_share(masks[:, ::8, ::8], 0.4)  # the corner of each block, those cut off included
    alone = block_masks(_keys(64)[5:6], (30, 40), _only("masked"))
    np.testing.assert_array_equal(alone[0], masks[5])


@pytest.mark.parametrize("size", SIZES)
def test_shuffled_blocks_keep_their_voxels_and_the_rest_its_order(size):
    x, y, changed = _corrupted(_only("shuffled"), size)
    before, after, moved = (_blocks(array, 8) for array in (x, y, changed))
    np.testing.assert_array_equal(np.sort(after, axis=2), np.sort(before, axis=2))
    # Channels moved together: the second still is the first with its sign changed.
    np.testing.assert_array_equal(after[..., 1], -after[..., 0])
    assert (moved == moved[:, :, :1]).all()
    assert changed.sum() == moved.sum()  # nothing of the border
    _assert_share(moved[:, :, 0, 0], 0.4)


def test_every_permutation_of_a_block_is_equally_likely():
    x = np.tile(np.arange(4, dtype=np.float32).reshape(2, 2, 1), (4800, 1, 1, 1))
    y, _ = _run(x, replace(OFF, block=2, shuffled=1.0))
    _, counts = np.unique(y.reshape(4800, 4), axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_blocks_of_one_patch_are_shuffled_differently():
    block = np.arange(64, dtype=np.float32).reshape(8, 8, 1)
    x = np.tile(block, (SAMPLES, 4, 5, 2))[:, :30]
    y, changed = _run(x, _only("shuffled"))
    for after, moved in zip(_blocks(y, 8), _blocks(changed, 8), strict=True):
        shuffled = after[moved[:, 0, 0], :, 0]
        # Up to 15 draws of 64 starts: about one pair in 64 is alike.
        assert len(np.unique(shuffled, axis=0)) >= len(shuffled) - 4


def test_block_longer_than_the_patch_is_cut_to_it():
    x = _images((4, 16, 16))
    y, changed = _run(x, replace(OFF, shuffled=1.0))
    assert changed.all()
    assert (y != x).mean() > 0.95
    corner = np.s_[:, :, :8, :8, 0]
    before, after = (np.sort(array[corner].reshape(SAMPLES, -1)) for array in (x, y))
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("size", SIZES)
def test_curve_is_a_monotone_bezier_that_keeps_the_range(size):
    x, y, changed = _corrupted(_only("curved"), size)
    chosen = _chosen(changed)
    _assert_share(chosen, 0.3)
    assert changed[chosen].all()
    falling = []
    for before, after in zip(x[chosen], y[chosen], strict=True):
        low, high = before.min(), before.max()
        u, v = (
            (array.ravel().astype(np.float64) - low) / (high - low) for array in (before, after)
        )
        falling.append(v[u.argmin()] > 0.5)
        u = 1 - u if falling[-1] else u
        assert np.diff(v[u.argsort()]).min() > -1e-6
        np.testing.assert_allclose([v[u.argmin()], v[u.argmax()]], [0, 1], atol=1e-6)
        # The heights of the inner control points by least squares, the curve by de Casteljau.
        basis = np.stack([3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u)], axis=1)
        heights = np.linalg.lstsq(basis, v - u**3)[0]
        assert (heights > -1e-4).all()
        assert (heights < 1 + 1e-4).all()
        points = np.array([[0, 0], [1 / 3, heights[0]], [2 / 3, heights[1]], [1, 1]])
        points = np.broadcast_to(points, (u.size, 4, 2))
        while points.shape[1] > 1:
            points = points[:, :-1] + u[:, None, None] * np.diff(points, axis=1)
        np.testing.assert_allclose(points[:, 0, 0], u, atol=1e-12)
        np.testing.assert_allclose(points[:, 0, 1], v, atol=1e-6)
    _assert_share(np.array(falling), 0.5)


def test_curve_leaves_a_constant_patch_alone():
    x = np.full((SAMPLES, 30, 40, 2), 3, np.float32)
    y, _ = _run(x, _only("curved"))
    np.testing.assert_allclose(y, x, atol=2e-6)  # the width's floor is 1e-6


@pytest.mark.parametrize("part", ["inpainted", "outpainted"])
def test_painted_voxels_are_uniform_over_the_range(part):
    x, y, changed = _corrupted(_only(part))
    _assert_share(_chosen(changed), 0.3)
    low, high = (extreme(x, axis=(1, 2, 3), keepdims=True) for extreme in (np.min, np.max))
    painted = ((y - low) / (high - low))[np.broadcast_to(changed, y.shape)]
    assert stats.kstest(painted, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_inpainting_fills_boxes_of_a_sixth_to_a_third(size):
    _, _, changed = _corrupted(_only("inpainted"), size)
    painted = changed[_chosen(changed)]
    share = painted.reshape(len(painted), -1).mean(axis=1)
    # From one box whose sides are n/6 rounded down to five that do not meet, rounded up.
    assert share.min() >= np.prod([size // 6 / size for size in size])
    assert share.max() <= 5 * np.prod([-(-size // 3) / size for size in size])
    # The volume of three boxes, the middle of one to five, with sides of a quarter on average;
    # less where they overlap.
    assert 0.7 * 3 * 0.25 ** len(size) < share.mean() < 3 * 0.25 ** len(size)


@pytest.mark.parametrize("size", SIZES)
def test_outpainting_keeps_about_a_quarter_to_a_half(size):
    _, _, changed = _corrupted(_only("outpainted"), size)
    painted = changed[_chosen(changed)]
    kept = 1 - painted.reshape(len(painted), -1).mean(axis=1)
    assert 0.25 < kept.mean() < 0.375  # below the middle of 1/4..1/2, for boxes overlap
    assert kept.min() > 0.1
    # Half of the patch in one box whose sides are a tenth longer, and a voxel more by rounding.
    assert kept.max() < 0.5 * np.prod([1.1 + 1 / size for size in size])


def test_boxes_lie_anywhere():
    x = np.zeros((4000, 12, 12, 1), np.float32)
    _, changed = _run(x, replace(OFF, inpainted=1.0))
    seen = changed.mean(axis=0)[..., 0]
    # Mirrored and turned patches are as likely; each share of 4,000 has a deviation below 0.008.
    for other in (seen[::-1], seen[:, ::-1], seen.T):
        np.testing.assert_allclose(seen, other, atol=5 * 0.008 * np.sqrt(2))
    assert seen.min() > 0


def test_no_patch_is_painted_both_ways():
    inside, outside = (_chosen(_corrupted(_only(f"{way}painted"))[2]) for way in ("in", "out"))
    assert not (inside & outside).any()


def test_noise_is_normal_with_the_asked_deviation_wherever_nothing_is_hidden():
    _, _, hidden = _corrupted(_only("masked"))
    x, y, changed = _corrupted(replace(_only("masked"), noise=0.2))
    assert changed.all()
    assert (y[hidden[..., 0]] == 0).all()
    noise = (y - x)[~hidden[..., 0]][:20000].astype(np.float64) / 0.2
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    # Each channel has its own: 20,000 pairs correlate within 5 / √20000.
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.036
