"""Plots for pages."""

import numpy as np

from penn_jax.report.html import SERIES, svg
from penn_jax.report.plots import Curve, Estimate, Points, curves, forest, points, reliability


def line(figure, number=0):
    return figure.axes[0].lines[number]


def test_curves_keep_their_numbers_and_tell_runs_from_means():
    x, y = np.arange(30.0), np.linspace(0.2, 0.9, 30)
    figure = curves([Curve(x, y, 0, thin=True), Curve(x, y, 8)], "steps", "Dice", 0.85, share=True)
    thin, thick, level = figure.axes[0].lines
    np.testing.assert_array_equal(thin.get_ydata(), y)
    assert thin.get_linewidth() < thick.get_linewidth()
    # The ninth series has the second colour again, but dashed.
    assert (thick.get_color(), thick.get_linestyle()) == (SERIES[1], "--")
    assert list(level.get_ydata()) == [0.85, 0.85]
    assert figure.axes[0].get_ylim()[1] == 1.0
    few = curves([Curve(x[:3], y[:3], 0)], "steps", "Dice")
    assert line(few).get_marker() == "o"
    assert line(figure).get_marker() != "o"


def test_a_forest_plot_has_its_first_row_on_top():
    rows = [Estimate("a", 1.0, [(0.5, 1.5), (-1.0, 3.0)], 1), Estimate("b", -1.0, [None, None], 2)]
    figure = forest(rows, "points")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.texts] == ["a", "b"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    drawn = [(list(found.get_xdata()), found.get_linewidth()) for found in axes.lines]
    assert ([0.5, 1.5], 4.0) in drawn
    assert ([-1.0, 3.0], 1.4) in drawn
    assert len(drawn) == 1 + 2 + 1 + 1  # the line at 0, two intervals, two dots


def test_points_leave_out_what_is_undefined():
    figure = points(
        [Points("a $x$", np.array([0.5, np.nan, 0.7]), 0), Points("b", np.zeros(0), 1)], "Dice"
    )
    dots, mean, *rest = figure.axes[0].lines
    assert sorted(dots.get_xdata()) == [0.5, 0.7]
    np.testing.assert_allclose(mean.get_xdata(), 0.6)
    assert len(rest) == 1  # the second row's dots, of which there are none
    assert "a $x$" in svg(figure, "points", "")  # not a formula


def test_reliability_is_drawn_beside_the_diagonal():
    figure = reliability([Curve(np.array([0.2, 0.9]), np.array([0.2, 0.7]), 0)])
    assert list(line(figure, 1).get_xdata()) == list(line(figure, 1).get_ydata()) == [0, 1]
