"""Plots for pages: they take the colours of the page they stand in (``html.svg``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from penn_jax.report.html import INK, SERIES

_WIDTH, _HEIGHT = 4.8, 3.2  # inches: text of 9 points is readable where a phone shows it whole
_ROW = 0.55  # inches that a row and the name above it take
_TEXT = 9
_FEW = 20
"""Points of a thick line, up to which each has a dot."""
_BAND = 0.4  # of a row, over which the points of a row are spread


class Curve(NamedTuple):
    """One line of a plot."""

    x: Float64[np.ndarray, " n"]
    y: Float64[np.ndarray, " n"]
    """NaN makes a gap."""
    series: int
    """Number of its colour, from 0; from the eighth on lines are dashed."""
    thin: bool = False


class Estimate(NamedTuple):
    """One row of a forest plot."""

    name: str
    value: float
    intervals: Sequence[tuple[float, float] | None]
    """Drawn over one another, the first the thickest."""
    series: int


class Points(NamedTuple):
    """One row of a plot of points."""

    name: str
    values: Float64[np.ndarray, " n"]
    """NaN is left out."""
    series: int


def curves(
    lines: Sequence[Curve], x: str, y: str, level: float | None = None, share: bool = False
) -> Figure:
    """Lines, with a dot on each point of those that have few.

    Args:
        lines: drawn in their order.
        x: what the horizontal axis is.
        y: what the vertical axis is.
        level: a height to mark.
        share: the heights are shares of 1.
    """
    figure, axes = _plot(x, y)
    for line in lines:
        axes.plot(
            line.x,
            line.y,
            color=_colour(line.series),
            lw=0.8 if line.thin else 2.0,
            alpha=0.55 if line.thin else 1.0,
            ls="--" if line.series >= len(SERIES) else "-",
            marker="o" if len(line.x) <= (1 if line.thin else _FEW) else None,
            ms=4,
        )
    if level is not None:
        axes.axhline(level, color=INK, lw=1, ls=":")
    if share:
        axes.set_ylim(max(0.0, axes.get_ylim()[0]), 1.0)
    return figure


def forest(rows: Sequence[Estimate], x: str) -> Figure:
    """Differences with their intervals, against a line at 0."""
    figure, axes = _rows([row.name for row in rows], x)
    axes.axvline(0.0, color=INK, alpha=0.5, lw=1)
    for height, row in enumerate(rows):
        colour = _colour(row.series)
        for number, interval in enumerate(row.intervals):
            if interval is not None:
                width = 4.0 if number == 0 else 1.4
                axes.plot(interval, (height, height), color=colour, lw=width, marker="|", ms=7)
        axes.plot(row.value, height, "o", color=colour, ms=7)
    return figure


def points(rows: Sequence[Points], x: str) -> Figure:
    """A dot for each value and a bar at their mean."""
    figure, axes = _rows([row.name for row in rows], x)
    for height, row in enumerate(rows):
        values = np.sort(row.values[~np.isnan(row.values)])
        # Neighbours in value stand at different heights, always the same ones.
        spread = (np.arange(len(values)) * 0.618 % 1.0 - 0.5) * _BAND
        axes.plot(values, height + spread, "o", color=_colour(row.series), ms=4, alpha=0.6, mew=0)
        if len(values):
            ends = (height - _BAND / 2 - 0.1, height + _BAND / 2 + 0.1)
            axes.plot([values.mean()] * 2, ends, color=INK, lw=2)
    return figure


def reliability(lines: Sequence[Curve]) -> Figure:
    """Shares observed against probabilities predicted; dotted: a perfect forecast."""
    figure = curves(lines, "predicted probability", "share observed")
    axes = figure.axes[0]
    axes.plot((0, 1), (0, 1), color=INK, lw=1, ls=":")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return figure


def _plot(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    _dress(axes)
    axes.grid(color=INK, alpha=0.15, lw=0.6)
    axes.set_xlabel(x, color=INK, fontsize=_TEXT)
    axes.set_ylabel(y, color=INK, fontsize=_TEXT)
    return figure, axes


def _rows(names: Sequence[str], x: str) -> tuple[Figure, Axes]:
    """One row for each name, the first on top."""
    figure = Figure(figsize=(_WIDTH, 0.6 + len(names) * _ROW), layout="constrained")
    axes = figure.subplots()
    _dress(axes)
    axes.grid(axis="x", color=INK, alpha=0.15, lw=0.6)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.5, -0.7)
    # Each name above its row: beside it, long ones would leave no room on a phone.
    left = axes.get_yaxis_transform()
    for height, name in enumerate(names):
        label = name.replace("$", r"\$")  # dollars would start a formula
        axes.text(0.0, height - 0.35, label, transform=left, color=INK, fontsize=_TEXT)
    axes.set_xlabel(x, color=INK, fontsize=_TEXT)
    return figure, axes


def _dress(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, labelsize=_TEXT)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def _colour(series: int) -> str:
    return SERIES[series % len(SERIES)]
