import math

import interval_coverage
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from penn_jax.report.comparison import compare_arms, holm, two_way_test
from penn_jax.report.metrics import mean_over_cases

TABLE = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 8.0]])


def dice(seed=0, seeds=3, cases=8):
    """Three arms; the second gains 0.05 and the third nothing."""
    random = np.random.default_rng(seed)
    case = random.normal(0.8, 0.05, cases)
    noise = random.normal(0, 0.02, (3, seeds, cases))
    names = ("plain", "better", "same")
    return dict(zip(names, case + noise + np.array([0, 0.05, 0])[:, None, None], strict=True))


# Seeds and cases at random


def test_the_two_way_test_by_hand():
    # Seeds' means 2 and 5: variance 4.5, over 2 seeds 2.25. Cases' means 2, 3 and 5.5: variance
    # 3.25, over 3 cases 1.0833. Degrees of freedom 3.3333² / (2.25²/1 + 1.0833²/2) = 1.9668.
    found = two_way_test(TABLE)
    assert found.p == pytest.approx(2 * stats.t.sf(3.5 / math.sqrt(10 / 3), 1.9668), rel=1e-4)
    expected = stats.t.interval(0.95, 1.9668, loc=3.5, scale=math.sqrt(10 / 3))
    np.testing.assert_allclose(found.ci95, expected, rtol=1e-4)


def test_it_is_min_f_of_the_analysis_of_variance():
    # Mean squares by least squares (NumPy): how much the residual rises without a factor. Then
    # Clark 1973: min F' = F_seeds F_cases / (F_seeds + F_cases), each F that of the mean, and
    # (F_seeds + F_cases)² / (F_seeds²/(C-1) + F_cases²/(S-1)) degrees of freedom.
    values = np.random.default_rng(2).normal(0.5, 1, (4, 7)) + np.arange(7) / 4
    seed, case = (index.ravel() for index in np.indices(values.shape))

    def residual(*columns):
        design = np.concatenate(columns, axis=1)
        fit = design @ np.linalg.lstsq(design, values.ravel())[0]
        return ((values.ravel() - fit) ** 2).sum()

    full = residual(np.eye(4)[seed], np.eye(7)[case])
    of_seeds = (residual(np.eye(7)[case]) - full) / 3
    of_cases = (residual(np.eye(4)[seed]) - full) / 6
    f_seeds, f_cases = values.size * values.mean() ** 2 / np.array([of_seeds, of_cases])
    freedom = (f_seeds + f_cases) ** 2 / (f_seeds**2 / 6 + f_cases**2 / 3)
    expected = stats.f.sf(f_seeds * f_cases / (f_seeds + f_cases), 1, freedom)
    assert two_way_test(values).p == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("axis", [0, 1])
def test_where_one_factor_changes_nothing_it_is_scipys_t_test_over_the_other(axis):
    means = np.random.default_rng(1).normal(0.3, 1, 9)
    values = np.stack([means] * 4, axis=axis)
    expected = stats.ttest_1samp(means, 0)
    found = two_way_test(values)
    assert found.p == pytest.approx(expected.pvalue)
    np.testing.assert_allclose(found.ci95, expected.confidence_interval(0.95))


@given(arrays(np.float64, (3, 4), elements=st.floats(-1, 1, width=16)), st.floats(0.1, 10))
@settings(deadline=None, max_examples=60)
def test_interval_and_p_value_agree_and_follow_unit_and_sign(values, unit):
    values = values + 1e-3 * np.arange(12).reshape(3, 4)  # more than rounding apart
    found = two_way_test(values)
    low, high = found.ci95
    assert 0 <= found.p <= 1
    assert low <= values.mean() <= high
    if abs(found.p - 0.05) > 1e-6:
        assert (low <= 0 <= high) == (found.p > 0.05)
    scaled = two_way_test(-unit * values)
    assert scaled.p == pytest.approx(found.p, rel=1e-6)
    np.testing.assert_allclose(scaled.ci95, [-unit * high, -unit * low], rtol=1e-6, atol=1e-12)


def test_one_seed_or_one_case_has_no_two_way_test():
    assert two_way_test(TABLE[:1]) is None
    assert two_way_test(TABLE[:, :1]) is None


def test_arms_that_agree_to_the_digit_do_not_differ():
    same = two_way_test(np.zeros((3, 6)))
    assert same == ((0, 0), 1)


# Holm


def test_holm_by_hand():
    # In order: 0.005·4, 0.01·3, 0.03·2, and 0.04·1 raised to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_procedure_of_the_paper_rejects(p):
    # Holm's steps as written: from the smallest, reject while p ≤ 0.05 / (tests left).
    rejected = 0
    for rank, value in enumerate(sorted(p)):
        if value * (len(p) - rank) > 0.05:
            break
        rejected += 1
    assert sum(value <= 0.05 for value in holm(p)) == rejected


# Arms


def test_arms_by_numpy_and_scipy():
    arms = dice()
    found = compare_arms(arms, "plain")
    assert list(found) == ["plain", "better", "same"]
    assert found["plain"].difference is None
    for name, values in arms.items():
        assert found[name].mean == pytest.approx(values.mean())
        assert found[name].ci95 == mean_over_cases(values.mean(axis=0))["ci95"]
        assert found[name].cases == 8
    tests = [two_way_test(arms[name] - arms["plain"]) for name in ("better", "same")]
    for name, test, corrected in zip(
        ("better", "same"), tests, holm([test.p for test in tests]), strict=True
    ):
        difference = found[name].difference
        assert difference.mean == pytest.approx(found[name].mean - found["plain"].mean)
        assert (difference.ci95_seeds, difference.p) == test
        assert difference.p_holm == corrected
    assert found["better"].difference.ci95[0] > 0
    assert found["better"].difference.p_holm < 0.05 < found["same"].difference.p_holm


def test_with_one_seed_the_paired_interval_is_that_of_the_differences():
    arms = dice(seeds=1)
    found = compare_arms(arms, "plain")["better"].difference
    expected = mean_over_cases((arms["better"] - arms["plain"])[0])
    assert (found.mean, found.ci95) == (expected["value"], expected["ci95"])
    assert (found.ci95_seeds, found.p, found.p_holm) == (None, None, None)


def test_a_case_undefined_anywhere_counts_nowhere():
    arms = dice()
    without = compare_arms({name: np.delete(v, 2, axis=1) for name, v in arms.items()}, "plain")
    arms["same"][1, 2] = np.nan
    assert compare_arms(arms, "plain") == without
    assert without["better"].cases == 7
    nothing = compare_arms({name: v * np.nan for name, v in arms.items()}, "plain")
    assert nothing["plain"] == (None, None, 0, None)
    assert nothing["better"].difference == (None,) * 5


def test_one_case_gives_means_alone():
    found = compare_arms({name: v[:, :1] for name, v in dice().items()}, "plain")["better"]
    assert found.mean is not None
    assert found.ci95 is None
    assert found.difference[1:] == (None,) * 4


def test_arms_that_cannot_be_compared_are_refused():
    arms = dice()
    with pytest.raises(ValueError, match="no arm 'other' among plain, better, same"):
        compare_arms(arms, "other")
    arms["same"] = arms["same"][:2]
    with pytest.raises(ValueError, match=r"\(2, 8\), \(3, 8\).*expected the same"):
        compare_arms(arms, "plain")


# Coverage, by the same simulation as the table in docs/metrics.md, but smaller


def test_each_interval_covers_what_it_is_said_to():
    # 3 seeds × 6 cases and effects of seeds, cases and rest alike. Coverages of 92 to 98 % give,
    # but for once in a thousand, so many hits in 1,000.
    least, most = stats.binom.ppf([0.0005, 0.9995], 1_000, [0.92, 0.98]) / 1_000
    found = interval_coverage.coverage_of_differences((3, 6), "normal 1", 1.0, 1_000, seed=9)
    assert least <= found.ci95_of_these_seeds <= most
    assert least <= found.ci95_seeds <= most
    # Theory: it takes a variance of 1/6 + 1/18 = 0.22 for 0.22 + 1/3: far too narrow for new seeds.
    assert found.ci95_of_all_seeds < 0.87
