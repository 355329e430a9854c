"""The page of a run: what it gives on its validation cases, where it fails and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penn_jax.report import plots
from penn_jax.report import run_tables as tables
from penn_jax.report.failures import Limits, Traits, worst
from penn_jax.report.html import page, svg
from penn_jax.report.metrics import mean_over_cases
from penn_jax.report.slices import Views
from penn_jax.report.tables import number, span

_MEANS = 40
"""Points of the smoothed loss."""


@dataclass(frozen=True, eq=False)
class Cases:
    """What is shown of the validation cases themselves."""

    traits: Mapping[str, Traits]
    usual: Limits
    """Of the training cases."""
    views: Mapping[str, Views]
    """Title (best, …) -> the slices of a case."""


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a run comes from."""

    facts: Mapping[str, str]
    commands: Sequence[str]
    config: str
    findings: Sequence[str]
    """What was odd in the data."""


def run_page(
    run: tables.RunResult,
    baseline: tables.RunResult | None,
    labels: Mapping[str, int],
    cases: Cases,
    origin: Origin,
) -> str:
    """One HTML file, a function of its arguments alone.

    Args:
        run: the run.
        baseline: another one on the same cases, where there is one.
        labels: name -> class; 0 is the background.
        cases: of the run.
        origin: of the run.
    """
    runs = [run] if baseline is None else [run, baseline]
    foreground = [name for name, number in sorted(labels.items(), key=lambda x: x[1]) if number]
    failures = worst(run.dice())
    results = {case: tables.case_result(run, case, cases.traits[case]) for case in run.counts}
    mean = mean_over_cases(run.metric("dice"), (0.0, 1.0))
    sections = {
        "metrics": "Six metrics",
        "classes": "Classes" if len(foreground) > 1 else None,
        "curves": "Learning curves",
        "cases": "Cases",
        "calibration": "Calibration",
        "slices": "Best, median and worst case",
        "failures": "Failures",
        "origin": "Where it comes from",
    }
    return page(
        "run.html",
        title=f"Run {run.name}",
        sections={anchor: name for anchor, name in sections.items() if name is not None},
        names=[each.name for each in runs],
        mean=number(mean["value"], 100.0),
        interval=span(mean["ci95"], 100.0),
        cases=mean["n"],
        validations=sum("dice" in point for point in run.log),
        six_cells=tables.six_cells(run, baseline),
        class_cells=tables.class_cells(run, foreground),
        quartile_cells=tables.quartile_cells(runs),
        calibration_cells=tables.calibration_cells(runs),
        failure_cells=tables.failure_cells({case: results[case] for case in failures}, cases.usual),
        trait_cells=tables.trait_cells(list(results.values()), cases.usual),
        plots=_plots(runs),
        views=cases.views,
        dice={case: number(value, 100.0) for case, value in run.dice().items()},
        foreground=foreground,
        origin=origin,
    )


def telling_cases(run: tables.RunResult) -> dict[str, str]:
    """The best, the median and the worst case by Dice, as far as there are that many."""
    dice = run.dice()
    ranked = sorted((case for case in dice if not np.isnan(dice[case])), key=lambda c: -dice[c])
    if len(ranked) < 3:
        return dict(zip(("Best", "Worst"), ranked, strict=False))
    return {"Best": ranked[0], "Median": ranked[len(ranked) // 2], "Worst": ranked[-1]}


# ---- plots -------------------------------------------------------------------------------------


def _plots(runs: Sequence[tables.RunResult]) -> dict[str, str]:
    drawn = {
        "loss": plots.curves(_losses(runs), "steps", "training loss"),
        "validation": plots.curves(_logged(runs, "dice"), "steps", "validation Dice", share=True),
        "cases": plots.curves(_ranked(runs), "share of cases, %", "Dice", share=True),
        "calibration": plots.reliability(
            [plots.Curve(*run.near.curve(), series) for series, run in enumerate(runs)]
        ),
    }
    described = {
        "loss": "Training loss against steps.",
        "validation": "Mean Dice of the validation cases against steps.",
        "cases": "Dice of every case, from the worst on the left to the best on the right.",
        "calibration": "Share of voxels that are of a class against the probability predicted.",
    }
    if all(sum("dice" in point for point in run.log) < 2 for run in runs):
        del drawn["validation"]  # one look makes no curve
    names = ", ".join(run.name for run in runs)
    return {
        name: svg(figure, name, f"{described[name]} Runs: {names}.")
        for name, figure in drawn.items()
    }


def _losses(runs: Sequence[tables.RunResult]) -> list[plots.Curve]:
    """The losses as they were logged, thin, and the means of neighbouring ones."""
    lines = [line for line in _logged(runs, "loss") if len(line.x)]
    return [line._replace(thin=True) for line in lines] + [_smoothed(line) for line in lines]


def _smoothed(line: plots.Curve) -> plots.Curve:
    parts = min(_MEANS, len(line.x))
    x, y = (
        np.array([part.mean() for part in np.array_split(values, parts)])
        for values in (line.x, line.y)
    )
    return plots.Curve(x, y, line.series)


def _logged(runs: Sequence[tables.RunResult], key: str) -> list[plots.Curve]:
    lines = []
    for series, run in enumerate(runs):
        chosen = [point for point in run.log if key in point]
        x = np.array([point["step"] for point in chosen], np.float64)
        y = np.array([np.nan if point[key] is None else point[key] for point in chosen])
        lines.append(plots.Curve(x, y, series))
    return lines


def _ranked(runs: Sequence[tables.RunResult]) -> list[plots.Curve]:
    lines = []
    for series, run in enumerate(runs):
        dice = np.sort(tables.known(run.metric("dice")))
        lines.append(plots.Curve(100 * (np.arange(len(dice)) + 0.5) / len(dice), dice, series))
    return lines
