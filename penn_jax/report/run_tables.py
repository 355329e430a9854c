"""What a run gives on its validation cases, as rows of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from penn_jax.report.calibration import Reliability, expected_calibration_error
from penn_jax.report.failures import Limits, Result, Traits, causes, rank_correlations
from penn_jax.report.metrics import (
    METRICS,
    Confusion,
    case_metrics,
    mean_over_cases,
    pooled_intervals,
    pooled_metrics,
    total,
)
from penn_jax.report.tables import NAMES, UNDEFINED, Cells, number, points, points_span, span

_BOUNDS = (0.0, 1.0)
_QUARTILES = {
    "Lowest": 0,
    "A quarter below": 25,
    "Median": 50,
    "A quarter above": 75,
    "Highest": 100,
}
_TRAITS = {"volume": "Volume", "contrast": "Contrast to its rim", "border": "Share at the border"}


@dataclass(frozen=True, eq=False)
class RunResult:
    """What one run gives on the validation cases."""

    name: str
    log: Sequence[Mapping[str, Any]]
    """The points of ``metrics.jsonl``."""
    counts: Mapping[str, Confusion]
    """Of each case, one for each foreground class."""
    merged: Mapping[str, Confusion]
    """The same with all foreground classes taken as one."""
    everywhere: Reliability
    near: Reliability
    """Of the voxels in boxes around the structures."""

    def metric(self, name: str) -> Float64[np.ndarray, " cases"]:
        """One of the six metrics of every case."""
        return np.array([case_metrics(count)[name] for count in self.counts.values()])

    def dice(self) -> dict[str, float]:
        """Dice of every case."""
        return dict(zip(self.counts, self.metric("dice"), strict=True))


def six_cells(run: RunResult, baseline: RunResult | None) -> Cells:
    """The six metrics, pooled and mean; with a baseline, its own and the paired differences."""
    header = ["Metric (%)", "Pooled", "95 % interval", "Mean", "95 % interval", "Cases"]
    if baseline is not None:
        header += ["Pooled, baseline", "Mean, baseline", "Difference of means", "95 % interval"]
    pooled = pooled_metrics(total(list(run.counts.values())))
    intervals = pooled_intervals(list(run.counts.values()))
    rows = []
    for name in METRICS:
        mean = mean_over_cases(run.metric(name), _BOUNDS)
        row = [
            NAMES[name],
            number(_defined(pooled[name]), 100.0),
            span(intervals[name], 100.0),
            number(mean["value"], 100.0),
            span(mean["ci95"], 100.0),
            str(mean["n"]),
        ]
        if baseline is not None:
            other = pooled_metrics(total(list(baseline.counts.values())))
            difference = mean_over_cases(run.metric(name) - baseline.metric(name), (-1.0, 1.0))
            row += [
                number(_defined(other[name]), 100.0),
                number(mean_over_cases(baseline.metric(name))["value"], 100.0),
                points(difference["value"]),
                points_span(difference["ci95"]),
            ]
        rows.append(row)
    return Cells(header, rows)


def class_cells(run: RunResult, foreground: Sequence[str]) -> Cells:
    """Dice of each class by itself."""
    pooled = total(list(run.counts.values()))
    rows = []
    for position, name in enumerate(foreground):
        of_class = [count.select([position]) for count in run.counts.values()]
        dice = np.array([case_metrics(count)["dice"] for count in of_class])
        mean = mean_over_cases(dice, _BOUNDS)
        rows.append(
            (
                name,
                number(_defined(pooled_metrics(pooled.select([position]))["dice"]), 100.0),
                number(mean["value"], 100.0),
                span(mean["ci95"], 100.0),
                str(mean["n"]),
            )
        )
    return Cells(("Class", "Pooled Dice (%)", "Mean Dice (%)", "95 % interval", "Cases"), rows)


def quartile_cells(runs: Sequence[RunResult]) -> Cells:
    """How Dice is spread over the cases of each run."""
    rows = []
    for run in runs:
        dice = known(run.metric("dice"))
        levels = list(_QUARTILES.values())
        values = np.percentile(dice, levels) if len(dice) else [None] * len(levels)
        rows.append((run.name, *(number(value, 100.0) for value in values), str(len(dice))))
    return Cells(("Dice (%)", *_QUARTILES, "Cases"), rows)


def calibration_cells(runs: Sequence[RunResult]) -> Cells:
    """The expected calibration error of each run, in points."""
    rows = []
    for run in runs:
        near, everywhere = (
            expected_calibration_error(counts) for counts in (run.near, run.everywhere)
        )
        rows.append((run.name, *(_small(error) for error in (near, everywhere))))
    header = ("Expected calibration error (points)", "Around the structures", "Everywhere")
    return Cells(header, rows)


def failure_cells(results: Mapping[str, Result], usual: Limits) -> Cells:
    """One row for each case that is to be looked at, and what can be told of it."""
    header = ("Case", "Dice (%)", "What can be told", "Precision (%)", "Recall (%)", "Volume (mL)")
    rows = [
        (
            case,
            number(result.dice, 100.0),
            "; ".join(causes(result, usual)) or UNDEFINED,
            number(result.precision, 100.0),
            number(result.recall, 100.0),
            _millilitres(result.traits.volume),
        )
        for case, result in results.items()
    ]
    return Cells(header, rows)


def trait_cells(results: Sequence[Result], usual: Limits) -> Cells:
    """What the structures of training cases look like, and what goes along with Dice."""
    shown = {
        "volume": _millilitres,
        "contrast": lambda value: f"{value:.2f}",
        "border": lambda value: f"{100 * value:.1f} %",
    }
    rows = []
    for name, (correlation, n) in rank_correlations(results).items():
        low, high = (getattr(side, name) for side in usual)
        ends = [UNDEFINED if np.isnan(end) else shown[name](end) for end in (low, high)]
        told = UNDEFINED if np.isnan(correlation) else f"{correlation:+.2f}"
        unit = " (mL)" if name == "volume" else ""
        rows.append((_TRAITS[name] + unit, *ends, told, str(n)))
    header = ("Of the reference", "10 % of training cases below", "10 % above")
    return Cells((*header, "Rank correlation with Dice", "Cases"), rows)


def case_result(run: RunResult, case: str, traits: Traits) -> Result:
    """How one case came out."""
    metrics = case_metrics(run.counts[case])
    return Result(
        metrics["dice"],
        metrics["precision"],
        metrics["recall"],
        case_metrics(run.merged[case])["dice"],
        bool(run.merged[case].in_prediction.any()),
        traits,
    )


def known(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " m"]:
    """The values that are defined."""
    return values[~np.isnan(values)]


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value


def _small(share: float | None) -> str:
    return UNDEFINED if share is None else f"{100 * share:.2f}"


def _millilitres(volume: float) -> str:
    return UNDEFINED if np.isnan(volume) else f"{volume / 1000:.3g}"
