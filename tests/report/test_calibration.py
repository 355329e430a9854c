"""Reliability of probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.calibration import calibration_curve

from penn_jax.report.calibration import (
    BINS,
    NOTHING,
    expected_calibration_error,
    reliability,
)


def of_one_class(foreground):
    foreground = np.asarray(foreground, np.float32)
    return np.stack([1 - foreground, foreground], axis=-1)


def test_a_hand_made_example():
    # Ten voxels at 0.9, of which 7 are of the class; ten at 0.2, of which 2 are.
    given_ = of_one_class([0.9] * 10 + [0.2] * 10)
    true = np.array([1] * 7 + [0] * 3 + [1] * 2 + [0] * 8, np.uint8)
    counts = reliability(given_, true)
    predicted, observed = counts.curve()
    np.testing.assert_allclose(predicted, [0.2, 0.9], rtol=1e-6)
    np.testing.assert_allclose(observed, [0.2, 0.7])
    # Half of the voxels are off by 0.2, half by nothing: 0.1.
    assert expected_calibration_error(counts) == pytest.approx(0.1, abs=1e-6)


def test_the_curve_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    given_ = generator.uniform(0.001, 0.999, 5000).astype(np.float32)
    true = (generator.uniform(size=5000) < given_**2).astype(np.uint8)
    observed, predicted = calibration_curve(true, given_, n_bins=BINS)
    ours = reliability(of_one_class(given_), true).curve()
    np.testing.assert_allclose(ours[0], predicted, rtol=1e-6)
    np.testing.assert_allclose(ours[1], observed, rtol=1e-12)


def test_each_foreground_class_counts_and_ignored_and_other_voxels_do_not():
    probabilities = np.array([[0.0, 1.0, 0.0], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0]], np.float32)
    reference = np.array([1, 255, 2], np.uint8)
    counts = reliability(probabilities, reference)
    # The second voxel is ignored. Pairs: (1.0, right), (0.0, wrong) twice, and (0.0, right).
    assert counts.pairs.sum() == 4
    assert (counts.pairs[0], counts.pairs[-1]) == (3, 1)
    assert (counts.observed[0], counts.observed[-1]) == (1, 1)
    assert expected_calibration_error(counts) == pytest.approx(1 / 4)
    one = reliability(probabilities, reference, np.array([True, True, False]))
    assert one.pairs.sum() == 2
    assert expected_calibration_error(one) == 0


def test_nothing_counted_has_no_error():
    assert expected_calibration_error(NOTHING) is None
    assert len(NOTHING.curve()[0]) == 0


@given(arrays.arrays(np.float32, 40, elements=st.floats(0, 1, width=32)), st.integers(0, 40))
def test_parts_add_up_to_the_whole(foreground, cut):
    probabilities = of_one_class(foreground)
    true = (np.arange(40) % 3 == 0).astype(np.uint8)
    whole = reliability(probabilities, true)
    parts = reliability(probabilities[:cut], true[:cut]) + reliability(
        probabilities[cut:], true[cut:]
    )
    np.testing.assert_array_equal(parts.pairs, whole.pairs)
    np.testing.assert_array_equal(parts.observed, whole.observed)
    np.testing.assert_allclose(parts.predicted, whole.predicted, atol=1e-12)
    assert whole.pairs.sum() == 40
