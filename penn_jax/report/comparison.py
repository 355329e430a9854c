"""Arms of a study compared with one of them, case by case and seed by seed.

Every arm is trained with the same seeds and tried on the same cases, so that an arm and the
baseline differ by a table (seeds × cases). Two questions are put to that table: would *these
trained networks* still differ on other cases, and would *networks of other seeds* too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.special import stdtr, stdtrit

from penn_jax.report.intervals import TAIL, Interval
from penn_jax.report.metrics import mean_over_cases


class Difference(NamedTuple):
    """What an arm gains over the baseline: mean of the paired differences, arm - baseline."""

    mean: float | None

    ci95: Interval | None
    """For other cases and the seeds as they are: from the seeds' mean difference of each case,
    by ``mean_over_cases``. It covers what these very networks gain on all cases of the kind; the
    luck of their seeds is in the figure, not in the interval. None below two cases."""

    ci95_seeds: Interval | None
    """For other cases and other seeds (``two_way_test``): covers what the method gains. Wide with
    three seeds that disagree, as it should be. None below two cases or two seeds."""

    p: float | None
    """Two-sided, of no gain over other cases and other seeds; belongs to ``ci95_seeds``."""

    p_holm: float | None
    """``p`` corrected for the number of arms compared: below 0.05 for any arm that gains nothing
    in at most 5 % of studies."""


class Arm(NamedTuple):
    """An arm by itself, and against the baseline."""

    mean: float | None
    """Over all seeds and the cases that count."""

    ci95: Interval | None
    """For other cases and the seeds as they are, from the seeds' mean of each case."""

    cases: int
    """Cases that count: those whose value is defined for every seed of every arm."""

    difference: Difference | None
    """None for the baseline."""


class TwoWayTest(NamedTuple):
    """A mean against 0 where seeds and cases are both random."""

    ci95: Interval
    p: float


def compare_arms(
    dice: Mapping[str, Float64[np.ndarray, "seeds cases"]], baseline: str
) -> dict[str, Arm]:
    """Compare every arm with the baseline.

    A case counts where its Dice is defined for every seed of every arm, so that all arms are
    measured on the same cases and the means differ by the mean of the differences. A case without
    foreground that any arm rightly leaves empty thus counts for none, false alarms of the others
    included: look at ``Arm.cases``.

    Args:
        dice: arm -> its values, NaN where undefined, of the same seeds and cases in every arm.
        baseline: the arm that the others are compared with.

    Raises:
        ValueError: the baseline is not among the arms, or their shapes differ.
    """
    if baseline not in dice:
        raise ValueError(f"no arm {baseline!r} among {', '.join(dice)}")
    shapes = {values.shape for values in dice.values()}
    if len(shapes) > 1:
        raise ValueError(f"arms have {sorted(shapes)} seeds and cases, expected the same")
    counted = ~np.any([np.isnan(values).any(axis=0) for values in dice.values()], axis=0)
    tables = {name: values[:, counted] for name, values in dice.items()}
    differences = {
        name: _difference(values - tables[baseline])
        for name, values in tables.items()
        if name != baseline
    }
    corrected = holm([found.p for found in differences.values() if found.p is not None])
    if corrected:  # seeds and cases are as many in every arm: all have a p value, or none
        differences = {
            name: found._replace(p_holm=p)
            for (name, found), p in zip(differences.items(), corrected, strict=True)
        }
    return {name: _arm(values, differences.get(name)) for name, values in tables.items()}


def two_way_test(values: Float64[np.ndarray, "seeds cases"]) -> TwoWayTest | None:
    """Whether a mean differs from 0, with S seeds and C cases both drawn at random.

        y_sc = μ + a_s + b_c + e_sc
        error² = E_s + E_c,   E_s = var(seeds' means) / S,   E_c = var(cases' means) / C
        ν = error⁴ / (E_s² / (S-1) + E_c² / (C-1))   (Satterthwaite)

    E_s and E_c are the mean squares of the two-way analysis of variance, each divided by S · C;
    both hold the share σ²/(S · C) of e. The unbiased moment estimate takes it off once and may
    then be negative; it covers no better, and with three seeds is mostly longer for its fewer
    degrees of freedom (``benchmarks/interval_coverage.py``). The error here is never below that
    over seeds or over cases alone. The square of t is Clark's min F'.

    Args:
        values: one difference a seed and case, all defined.

    Returns:
        The 95 % interval of μ and the two-sided p value of μ = 0; None below two seeds or cases.

    Reference:
        Clark 1973, Journal of Verbal Learning and Verbal Behavior 12:335; Forster and Dickinson
        1976, the same, 15:135; Searle, Casella and McCulloch 1992, Variance Components, chapter 4.
    """
    seeds, cases = values.shape
    if seeds < 2 or cases < 2:
        return None
    of_seeds = float(values.mean(axis=1).var(ddof=1)) / seeds
    of_cases = float(values.mean(axis=0).var(ddof=1)) / cases
    mean, error = float(values.mean()), math.sqrt(of_seeds + of_cases)
    if error == 0:
        return TwoWayTest((mean, mean), float(mean == 0))
    freedom = error**4 / (of_seeds**2 / (seeds - 1) + of_cases**2 / (cases - 1))
    half = float(-stdtrit(freedom, TAIL)) * error
    return TwoWayTest((mean - half, mean + half), float(2 * stdtr(freedom, -abs(mean) / error)))


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number m: the k-th smallest is multiplied by m + 1 - k.

    A corrected value is at most 1 and no less than that of a smaller p. Any dependence between
    the tests is allowed.

    Reference:
        Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    corrected = [0.0] * len(p)
    largest = 0.0
    for rank, position in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - rank) * p[position]))
        corrected[position] = largest
    return corrected


def _difference(values: Float64[np.ndarray, "seeds cases"]) -> Difference:
    over_cases = mean_over_cases(values.mean(axis=0), (-1.0, 1.0))
    test = two_way_test(values)
    return Difference(
        over_cases["value"],
        over_cases["ci95"],
        None if test is None else test.ci95,
        None if test is None else test.p,
        None,
    )


def _arm(values: Float64[np.ndarray, "seeds cases"], difference: Difference | None) -> Arm:
    over_cases = mean_over_cases(values.mean(axis=0), (0.0, 1.0))
    return Arm(over_cases["value"], over_cases["ci95"], over_cases["n"], difference)
