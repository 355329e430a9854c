"""95 % intervals of figures taken over cases: what other cases of the same kind might give.

A statistic here is a function of sums over cases: a mean, or a ratio of pooled counts. With six
cases or more it is resampled (the expanded percentile bootstrap); with fewer too few different
resamples exist, and Student's t takes its place. ``benchmarks/interval_coverage.py`` measures how
often these intervals hold the truth, ``docs/metrics.md`` has the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtr, stdtrit

Interval = tuple[float, float]
Statistic = Callable[[Float64[np.ndarray, "r d"]], Float64[np.ndarray, "r k"]]

TAIL = 0.025
"""Share of experiments in which the truth may lie beyond each end."""

FEWEST_RESAMPLED = 6
"""At five cases the expanded tail, 0.095 %, is that of 3 among all 5⁵ resamples."""

_RESAMPLES = 5_000
_DRAWS = 200_000  # at least: the tails are thin with few cases (0.24 % with 6: 81 resamples)
_BLOCK = 1 << 20  # values drawn at once: bounds the memory of the bootstrap at some 40 MB


def interval_over_cases(
    rows: Float64[np.ndarray, "n d"],
    statistic: Statistic,
    bounds: Interval = (-math.inf, math.inf),
    seed: int = 0,
) -> list[Interval | None]:
    """The 95 % intervals of k statistics over n independent cases.

    Args:
        rows: what each case adds to the d sums.
        statistic: r rows of sums over n cases -> r rows of k statistics, NaN where undefined.
        bounds: the least and the greatest value possible, at which an interval is cut.
        seed: of the resamples; the intervals are a function of the rows and of this number.

    Returns:
        One interval a statistic; None for a single case, for a statistic that is never defined
        and, below six cases, for one that is undefined without one of them.
    """
    n = len(rows)
    if n < 2:
        ends = np.full((2, statistic(rows).shape[1]), np.nan)
    elif n < FEWEST_RESAMPLED:
        ends = t_interval(rows, statistic)
    else:
        ends = expanded_percentile(statistic(resampled_sums(rows, seed)), n)
    return [
        None if math.isnan(low) else (float(low), float(high))
        for low, high in np.clip(ends, *bounds).T
    ]


def expanded_tail(n: int) -> float:
    """The quantile level that takes the place of 2.5 % with n cases.

        Φ(√(n / (n-1)) t), t being the 2.5 % quantile of Student's t with n-1 degrees of freedom

    The bootstrap spreads a mean by s √((n-1)/n) / √n, and its quantiles are those of a normal
    distribution at best: on both counts it is too narrow with few cases. At this level the
    interval of a mean whose resamples are normal is Student's t interval, yet one that is skewed
    stays so.

    Reference:
        Hesterberg 2015, The American Statistician 69:371, on the bootstrap of small samples.
    """
    return float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, TAIL)))


def expanded_percentile(
    statistics: Float64[np.ndarray, "r k"], n: int
) -> Float64[np.ndarray, "2 k"]:
    """The ends between which all but the two expanded tails of resampled statistics lie.

    Args:
        statistics: of r resamples of n cases; undefined ones (NaN) are left out.
        n: number of cases.
    """
    tail = expanded_tail(n)
    ends = np.full((2, statistics.shape[1]), np.nan)
    for column, values in enumerate(statistics.T):
        defined = values[~np.isnan(values)]
        if len(defined):
            ends[:, column] = np.quantile(defined, (tail, 1 - tail))
    return ends


def t_interval(
    rows: Float64[np.ndarray, "n d"], statistic: Statistic
) -> Float64[np.ndarray, "2 k"]:
    """Student's t interval of a statistic with its jackknife standard error.

        θ ± t √((n-1)/n Σ(θ₋ᵢ - mean of θ₋)²), θ₋ᵢ being the statistic without case i

    For a mean it is the usual t interval.

    Reference:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 11.
    """
    n = len(rows)
    whole = rows.sum(axis=0, keepdims=True)
    without = statistic((whole - rows) * (n / (n - 1)))  # sums over n cases, as the others
    error = np.sqrt((n - 1) / n * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    middle, half = statistic(whole)[0], -stdtrit(n - 1, TAIL) * error
    return np.stack([middle - half, middle + half])


def resampled_sums(rows: Float64[np.ndarray, "n d"], seed: int = 0) -> Float64[np.ndarray, "r d"]:
    """Sums over n rows drawn with replacement, 5,000 times or more where rows are few."""
    n, width = rows.shape
    random = np.random.default_rng(seed)
    sums = np.empty((max(_RESAMPLES, _DRAWS // n), width))
    block = max(1, _BLOCK // n)
    for start in range(0, len(sums), block):
        part = sums[start : start + block]
        drawn = random.integers(0, n, size=(len(part), n))
        for column in range(width):
            part[:, column] = rows[:, column][drawn].sum(axis=1)
    return sums
