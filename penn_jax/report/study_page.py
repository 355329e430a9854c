"""The page of a study: its tables and plots in one HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from penn_jax.report import plots
from penn_jax.report import study_tables as tables
from penn_jax.report.html import page, svg

_POINTS = 200
"""Of a mean learning curve."""


def study_page(table: Mapping[str, Any]) -> str:
    """One HTML file, a function of the table alone.

    Args:
        table: as ``study_tables`` describes it.
    """
    has_target = table["target_dice"] is not None
    compared = [arm for arm in table["arms"] if arm["difference"] is not None]
    sections = {
        "result": "Result",
        "differences": "Differences" if compared else None,
        "target": tables.target_title(table) if has_target else None,
        "curves": "Learning curves",
        "cases": "Cases",
        "metrics": "Six metrics",
        "sweep": "Learning rates tried" if tables.swept(table) else None,
        "runs": "Runs",
        "repeat": "Repeat it",
    }
    return page(
        "study.html",
        title=table["title"],
        sections={anchor: name for anchor, name in sections.items() if name is not None},
        arms=table["arms"],
        note=tables.intervals_note(table),
        arm_cells=tables.arm_cells(table),
        target_cells=tables.target_cells(table) if has_target else None,
        six_cells=tables.six_cells(table),
        sweep_cells=tables.sweep_cells(table),
        run_cells=tables.run_cells(table),
        commands=[table["command"]],
        repeat_note=tables.repeat_note(table),
        provenance=tables.provenance(table),
        plots=_plots(table) | ({"differences": _forest(table)} if compared else {}),
    )


def _plots(table: Mapping[str, Any]) -> dict[str, str]:
    arms, level = table["arms"], table["target_dice"]
    names = ", ".join(arm["name"] for arm in arms)
    found = {}
    for column, unit in enumerate(("steps", "seconds")):
        x = "steps" if unit == "steps" else "seconds of training"
        figure = plots.curves(_curves(arms, column), x, "validation Dice", level, share=True)
        found[unit] = svg(figure, unit, f"Validation Dice against {x}, one colour an arm: {names}.")
    rows = [
        plots.Points(arm["name"], _case_means(arm["runs"]), series)
        for series, arm in enumerate(arms)
    ]
    described = "Dice of each case, one row an arm; the means are in the first table."
    found["cases"] = svg(plots.points(rows, "Dice of a case"), "cases", described)
    return found


def _curves(arms: Sequence[Mapping[str, Any]], column: int) -> list[plots.Curve]:
    """A thin line for each run and a thick one for their mean; ``column`` 0 steps, 1 seconds."""
    lines, means = [], []
    for series, arm in enumerate(arms):
        drawn = [
            np.array([(row[column], np.nan if row[2] is None else row[2]) for row in run["curve"]])
            for run in arm["runs"]
            if run["curve"]
        ]
        if not drawn:
            continue
        lines += [plots.Curve(run[:, 0], run[:, 1], series, thin=True) for run in drawn]
        # Where every run was: beyond, the mean would be of fewer runs and jump.
        first, last = max(run[0, 0] for run in drawn), min(run[-1, 0] for run in drawn)
        if last >= first:
            x = np.linspace(first, last, _POINTS) if last > first else np.array([first])
            mean = np.mean([np.interp(x, run[:, 0], run[:, 1]) for run in drawn], axis=0)
            means.append(plots.Curve(x, mean, series))
    return lines + means


def _case_means(runs: Sequence[Mapping[str, Any]]) -> Float64[np.ndarray, " cases"]:
    """The mean Dice over runs of each case; NaN where a run has none."""
    dice: dict[str, list[float]] = {}
    for run in runs:
        for case, values in run["cases"].items():
            value = values["dice"]
            dice.setdefault(case, []).append(math.nan if value is None else value)
    return np.array([np.mean(values) for values in dice.values()])


def _forest(table: Mapping[str, Any]) -> str:
    rows = []
    for series, arm in enumerate(table["arms"]):
        found = arm["difference"]
        if found is None or found["value"] is None:
            continue
        name = f"{arm['name']} – {arm['baseline']}"
        intervals = [_percent(found[over]) for over in ("ci95", "ci95_seeds")]
        rows.append(plots.Estimate(name, 100.0 * found["value"], intervals, series))
    described = (
        "Differences of mean Dice with two 95 % intervals each; the numbers are in the table."
    )
    return svg(plots.forest(rows, "difference of mean Dice, points"), "forest", described)


def _percent(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (100.0 * interval[0], 100.0 * interval[1])
