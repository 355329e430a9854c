"""Cross-entropy and soft Dice against PyTorch and a float64 hand computation."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from penn_jax.config import LossConfig
from penn_jax.model.loss import coarser_labels, loss_sums, loss_value
from penn_jax.types import IGNORE_LABEL


@given(st.integers(0, 2**31 - 1), st.integers(2, 4), st.booleans())
def test_loss_is_torch_cross_entropy_plus_hand_written_dice(seed, classes, ignored):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(2, 5, 6, classes)).astype(np.float32) * 3
    label = generator.integers(0, classes, (2, 5, 6)).astype(np.uint8)
    if ignored:
        label[generator.random(label.shape) < 0.3] = IGNORE_LABEL
    expected_ce = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).permute(0, 3, 1, 2).double(),
        torch.from_numpy(label.astype(np.int64)),
        ignore_index=IGNORE_LABEL,
    ).item()
    valid = label != IGNORE_LABEL
    p = np.exp(logits.astype(np.float64))
    p = p / p.sum(axis=-1, keepdims=True)
    dice = []
    for k in range(1, classes):
        true, likely = (label == k)[valid], p[..., k][valid]
        dice.append((2 * (true * likely).sum() + 1) / (true.sum() + likely.sum() + 1))
    expected = expected_ce + 1 - np.mean(dice)

    def value(logits, label):
        return loss_value(loss_sums(logits, label), LossConfig())

    # Some 60 float32 terms of order one.
    arguments = jnp.asarray(logits), jnp.asarray(label)
    np.testing.assert_allclose(value(*arguments), expected, rtol=2e-5)
    np.testing.assert_allclose(jax.jit(value)(*arguments), expected, rtol=2e-5)


def test_sums_of_shards_make_the_loss_of_the_whole():
    generator = np.random.default_rng(0)
    logits = jnp.asarray(generator.normal(size=(4, 6, 6, 3)), jnp.float32)
    label = jnp.asarray(generator.integers(0, 3, (4, 6, 6)), jnp.uint8)
    whole = loss_sums(logits, label)
    # Uneven shards, as no mean of means could merge.
    parts = [loss_sums(logits[:1], label[:1]), loss_sums(logits[1:], label[1:])]
    merged = jax.tree.map(lambda a, b: a + b, *parts)
    for a, b in zip(whole, merged, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    config = LossConfig(cross_entropy=0.5, dice=2.0)
    np.testing.assert_allclose(loss_value(whole, config), loss_value(merged, config), rtol=1e-5)


def test_empty_foreground_and_all_ignored_are_finite_with_finite_gradients():
    logits = jnp.zeros((1, 4, 4, 3)).at[..., 0].set(80.0)
    for label in (jnp.zeros((1, 4, 4), jnp.uint8), jnp.full((1, 4, 4), 255, jnp.uint8)):
        value, gradient = jax.value_and_grad(
            lambda x, y=label: loss_value(loss_sums(x, y), LossConfig())
        )(logits)
        # Nothing there and nothing predicted: Dice (0 + 1) / (0 + 1), cross-entropy 0.
        np.testing.assert_allclose(value, 0.0, atol=1e-6)
        assert np.isfinite(gradient).all()


def test_coarser_labels_take_the_middle_of_each_block():
    label = jnp.arange(36, dtype=jnp.uint8).reshape(1, 6, 6)
    np.testing.assert_array_equal(coarser_labels(label, (3, 3))[0], label[0, 1::2, 1::2])
    np.testing.assert_array_equal(coarser_labels(label, (2, 2))[0], label[0, 1::3, 1::3])
    np.testing.assert_array_equal(coarser_labels(label, (6, 6)), label)
