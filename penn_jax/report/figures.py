"""Pictures of results: contours on slices, restored patches, and curves of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from penn_jax.types import IGNORE_LABEL, InputError

Slice = tuple[
    str,
    Float[np.ndarray, "_ _"],
    UInt8[np.ndarray, "_ _"] | None,
    UInt8[np.ndarray, "_ _"],
]
"""Title, image, reference labels where there are any, predicted labels; row 0 is drawn on top."""


class Restoration(NamedTuple):
    """One channel of a patch of pre-training; row 0 is drawn on top."""

    title: str
    original: Float[np.ndarray, "rows columns"]
    corrupted: Float[np.ndarray, "rows columns"]
    restored: Float[np.ndarray, "rows columns"]


_BACKGROUND = "#0d1117"
_TEXT = "#e6edf3"
_FAINT = "#30363d"
_REFERENCE = "#ffffff"
# Okabe and Ito's palette, which the colour-blind can tell apart, in an order that shows on grey.
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#4f8cff")
_LOSS, _DICE = _COLOURS[1], _COLOURS[0]
_DPI = 150
_PANEL = 3.0  # inches
_COLUMNS = 4


def overlay(path: Path, slices: Sequence[Slice], labels: Mapping[int, str] | None = None) -> None:
    """Draw slices with the predicted contours in colour and the reference dashed in white.

    Args:
        path: PNG file to write.
        slices: one panel each, four in a row.
        labels: label -> name for the legend; its number otherwise.

    Raises:
        ValueError: no slice.
    """
    if not slices:
        raise ValueError("nothing to draw: no slice was given")
    names = labels or {}
    columns = min(_COLUMNS, len(slices))
    rows = -(-len(slices) // columns)
    tallest = max(image.shape[0] / image.shape[1] for _, image, _, _ in slices)
    size = (columns * _PANEL, rows * (_PANEL * tallest + 0.3) + 0.4)
    figure = Figure(figsize=size, facecolor=_BACKGROUND, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    shown: set[int] = set()
    for panel, (title, image, reference, prediction) in zip(panels, slices, strict=False):
        low, high = _window(image)
        panel.imshow(image, cmap="gray", vmin=low, vmax=high)
        panel.set_title(title, color=_TEXT, fontsize=9)
        shown |= _contours(panel, prediction, "solid", 1.4)
        if reference is not None:
            shown |= _contours(panel, reference, "dashed", 0.8, _REFERENCE)
    handles: list[Artist] = [
        Line2D([], [], color=_colour(label), lw=2, label=names.get(label, f"label {label}"))
        for label in sorted(shown)
    ]
    if any(reference is not None for _, _, reference, _ in slices):
        handles.append(Line2D([], [], color=_REFERENCE, lw=1, ls="--", label="reference"))
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(len(handles), 2 * columns),
            frameon=False,
            labelcolor=_TEXT,
            fontsize=8,
        )
    _save(figure, path)


def restoration_page(path: Path, rows: Sequence[Restoration]) -> None:
    """Draw patches as they were, corrupted and restored, and the absolute error, side by side.

    The first three share the original's grey window; the error is drawn from black, none, to
    white, as large as that window is wide.

    Args:
        path: PNG file to write.
        rows: one row of panels each.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("nothing to draw: no patch was given")
    heads = ("original", "corrupted", "restored", "error")
    heights = [_PANEL * row.original.shape[0] / row.original.shape[1] for row in rows]
    figure = Figure(
        figsize=(len(heads) * _PANEL, sum(heights) + 0.3),
        facecolor=_BACKGROUND,
        layout="constrained",
    )
    grid = figure.subplots(len(rows), len(heads), squeeze=False, height_ratios=heights)
    for panels, row in zip(grid, rows, strict=True):
        low, high = _window(row.original)
        for panel, image in zip(panels, row[1:], strict=False):
            panel.imshow(image, cmap="gray", vmin=low, vmax=high)
        error = np.abs(row.restored - row.original)
        panels[-1].imshow(error, cmap="gray", vmin=0.0, vmax=high - low)
        panels[0].set_ylabel(row.title, color=_TEXT, fontsize=9)
        for panel in panels:
            panel.set(xticks=[], yticks=[], frame_on=False)
    for panel, head in zip(grid[0], heads, strict=True):
        panel.set_title(head, color=_TEXT, fontsize=9)
    _save(figure, path)


def learning_curves(path: Path, metrics_jsonl: Path) -> None:
    """Draw the loss and the validation Dice of a run against the step.

    Args:
        path: PNG file to write.
        metrics_jsonl: one JSON object a line with ``step`` and either ``loss``, or ``dice`` of
            the validation; other keys are passed over.

    Raises:
        InputError: no such file, or nothing in it to draw.
    """
    points = read_log(metrics_jsonl)
    figure = Figure(figsize=(7, 3.6), facecolor=_BACKGROUND, layout="constrained")
    axes = figure.subplots()
    _dress(axes)
    axes.grid(color=_FAINT, lw=0.5)
    axes.set_xlabel("step", color=_TEXT)
    axes.set_ylabel("loss", color=_LOSS)
    axes.plot(*_series(points, "loss"), color=_LOSS, lw=1.2)
    right = axes.twinx()
    _dress(right)
    right.set_ylabel("validation Dice", color=_DICE)
    right.set_ylim(0, 1)
    right.plot(*_series(points, "dice"), color=_DICE, lw=1.2, marker="o", ms=3)
    _save(figure, path)


def _window(image: Float[np.ndarray, "rows columns"]) -> tuple[float, float]:
    """The grey values drawn black and white: bright specks do not darken the rest."""
    low, high = np.percentile(image, (1, 99.5))
    return float(low), float(max(high, low + 1e-6))


def _colour(label: int) -> str:
    return _COLOURS[(label - 1) % len(_COLOURS)]


def _contours(
    panel: Axes,
    mask: UInt8[np.ndarray, "rows columns"],
    style: str,
    width: float,
    colour: str | None = None,
) -> set[int]:
    """Outline every label of a mask and return the labels."""
    found = {int(label) for label in np.unique(mask)} - {0, IGNORE_LABEL}
    padded = np.pad(mask, 1)  # so that a mask at the border is closed
    rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
    for label in sorted(found):
        panel.contour(
            columns,
            rows,
            padded == label,
            levels=[0.5],
            colors=[colour or _colour(label)],
            linewidths=width,
            linestyles=style,
        )
    return found


def read_log(metrics_jsonl: Path) -> list[dict[str, Any]]:
    """The points of a run's log; the last line may be half-written.

    Raises:
        InputError: no such file, a damaged line, or nothing in it to draw.
    """
    if not metrics_jsonl.is_file():
        raise InputError(metrics_jsonl, "no such file", "the log of a run", "check the path")
    lines = metrics_jsonl.read_text(encoding="utf-8").splitlines()
    points = []
    for number, line in enumerate(lines, start=1):
        try:
            points.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise InputError(
                    metrics_jsonl, f"line {number} is damaged", "JSON", "remove the line"
                ) from None
    if not any("step" in point and {"loss", "dice"} & point.keys() for point in points):
        raise InputError(
            metrics_jsonl, "nothing to draw", "lines with step and loss", "train a little longer"
        )
    return points


def _series(points: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the lines that have the key; a null draws a gap."""
    chosen = [point for point in points if key in point]
    values = [np.nan if point[key] is None else point[key] for point in chosen]
    return [float(point["step"]) for point in chosen], values


def _dress(axes: Axes) -> None:
    axes.set_facecolor(_BACKGROUND)
    axes.tick_params(colors=_TEXT, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(_FAINT)


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.partial")
    FigureCanvasAgg(figure)
    figure.savefig(temporary, format="png", dpi=_DPI, facecolor=figure.get_facecolor())
    temporary.replace(path)
