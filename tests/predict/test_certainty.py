"""Entropy against SciPy; overlaps against sums by hand and simulated references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from penn_jax.predict.certainty import (
    entropy,
    expected_dice,
    inside_probability,
    overlap_sums,
)


def drawn(shape, classes, seed=0, sharpness=1.0):
    logits = sharpness * np.random.default_rng(seed).normal(size=(*shape, classes))
    likely = np.exp(logits - logits.max(-1, keepdims=True))
    return (likely / likely.sum(-1, keepdims=True)).astype(np.float32)


@given(classes=st.integers(2, 25), sharpness=st.sampled_from((0.0, 1.0, 30.0)))
def test_entropy_is_scipys_over_that_of_equal_probabilities(classes, sharpness):
    likely = drawn((5, 4), classes, sharpness=sharpness)
    found = entropy(likely)
    expected = stats.entropy(likely.astype(np.float64), axis=-1) / np.log(classes)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1


def test_entropy_at_the_ends():
    certain = np.eye(3, dtype=np.float32)
    assert entropy(certain).tolist() == [0, 0, 0]
    assert entropy(np.array([[-1e-8, 1 + 1e-8]], np.float32)).tolist() == [0]  # as interpolated
    assert entropy(np.full((1, 2), 0.5, np.float32)).tolist() == [1]


def test_estimates_by_hand():
    # Voxels of (background, a, b); the second and third are given to a, none to b.
    likely = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.4, 0.6, 0.0], [0.7, 0.0, 0.3]])
    mask = np.array([0, 1, 1, 0], np.uint8)
    sums = overlap_sums(likely, mask)
    np.testing.assert_allclose(sums, [[1.4, 0.0], [1.5, 0.3], [2, 0]])
    np.testing.assert_allclose(inside_probability(sums), [0.7, np.nan])
    np.testing.assert_allclose(expected_dice(sums), [2.8 / 3.5, np.nan])


def test_sums_of_parts_add_up():
    likely = drawn((6, 30), 4)
    mask = likely.argmax(-1).astype(np.uint8)
    parts = sum(overlap_sums(likely[i : i + 2], mask[i : i + 2]) for i in (0, 2, 4))
    np.testing.assert_allclose(parts, overlap_sums(likely, mask))


def test_estimates_are_those_of_references_drawn_from_the_probabilities():
    likely = drawn((40, 40), 2, sharpness=2.0)
    mask = likely.argmax(-1).astype(np.uint8)
    references = np.random.default_rng(1).random((400, 40, 40)) < likely[..., 1]
    both = (references & (mask == 1)).sum((1, 2))
    dice = 2 * both / (references.sum((1, 2)) + (mask == 1).sum())
    sums = overlap_sums(likely, mask)
    # Of 1,600 voxels and 400 references the mean has a standard error of some 0.0005.
    assert expected_dice(sums)[0] == pytest.approx(dice.mean(), abs=0.003)
    precision = both / (mask == 1).sum()
    assert inside_probability(sums)[0] == pytest.approx(precision.mean(), abs=0.003)
