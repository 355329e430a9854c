"""The results of ``penn evaluate`` as tables, for the terminal (rich) and for a page (Markdown)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from penn_jax.report.metrics import METRICS
from penn_jax.report.surface import SurfaceDistances

NAMES = {
    "precision": "Precision",
    "recall": "Recall",
    "accuracy": "Accuracy",
    "f1": "F1",
    "iou": "IoU",
    "dice": "Dice",
    "hd95": "HD95",
    "mean_surface_distance": "Mean distance",
}
UNDEFINED = "–"


class Cells(NamedTuple):
    """A table as text, the first column left-aligned and the others right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def six_metric_table(result: Mapping[str, Any], title: str | None = None) -> Table:
    """The six metrics in % and surface distances in mm, with 95 % intervals.

    ``Pooled`` is over all pixels, ``Mean`` over the given number of cases.

    Args:
        result: what ``evaluate`` returns, or the same read back from its JSON file.
        title: printed above the table.
    """
    return _rich(_six_metric_cells(result), title)


def six_metric_markdown(result: Mapping[str, Any]) -> str:
    """The table of ``six_metric_table`` as Markdown."""
    return markdown(_six_metric_cells(result))


def label_table(
    result: Mapping[str, Any], names: Mapping[int, str] | None = None, title: str | None = None
) -> Table:
    """One row a label: Dice pooled and averaged over the cases that have the label, HD95.

    Args:
        result: as for ``six_metric_table``.
        names: label -> what it is called; its number otherwise.
        title: printed above the table.
    """
    return _rich(_label_cells(result, names or {}), title)


def label_markdown(result: Mapping[str, Any], names: Mapping[int, str] | None = None) -> str:
    """The table of ``label_table`` as Markdown."""
    return markdown(_label_cells(result, names or {}))


def _six_metric_cells(result: Mapping[str, Any]) -> Cells:
    header = ("Metric", "Pooled", "95 % interval", "Mean", "95 % interval", "Cases")
    rows = [
        (
            f"{NAMES[metric]} (%)",
            number(result["pooled"][metric], 100.0),
            span(result["pooled_ci95"][metric], 100.0),
            *_mean(result["mean"][metric], 100.0),
        )
        for metric in METRICS
    ]
    rows += [
        (f"{NAMES[metric]} (mm)", UNDEFINED, UNDEFINED, *_mean(result["mean"][metric], 1.0))
        for metric in SurfaceDistances._fields
    ]
    return Cells(header, rows)


def _label_cells(result: Mapping[str, Any], names: Mapping[int, str]) -> Cells:
    header = ("Label", "Pooled Dice (%)", "Mean Dice (%)", "95 % interval", "Cases", "HD95 (mm)")
    rows = [
        (
            names.get(int(label), str(label)),
            number(values["pooled"]["dice"], 100.0),
            *_mean(values["mean"]["dice"], 100.0),
            number(values["mean"]["hd95"]["value"], 1.0),
        )
        for label, values in result["labels"].items()
    ]
    return Cells(header, rows)


def _mean(mean: Mapping[str, Any], factor: float) -> tuple[str, str, str]:
    return number(mean["value"], factor), span(mean["ci95"], factor), str(mean["n"])


def number(value: float | None, factor: float) -> str:
    """A share (factor 100, in %, one decimal) or a length (factor 1, two); a dash for None."""
    return UNDEFINED if value is None else f"{value * factor:.{1 if factor > 1 else 2}f}"


def span(interval: Sequence[float] | None, factor: float) -> str:
    """The ends of an interval, each as :func:`number` writes it."""
    if interval is None:
        return UNDEFINED
    return " to ".join(number(end, factor) for end in interval)


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return UNDEFINED if value is None else f"{value * 100.0:+.2f}"


def points_span(interval: Sequence[float] | None) -> str:
    """The ends of an interval of such a difference."""
    return UNDEFINED if interval is None else " to ".join(points(end) for end in interval)


def _rich(cells: Cells, title: str | None) -> Table:
    table = Table(title=title)
    for position, name in enumerate(cells.header):
        table.add_column(name, justify="right" if position else "left")
    for row in cells.rows:
        table.add_row(*row)
    return table


def markdown(cells: Cells) -> str:
    """The table in Markdown."""
    rule = ["---"] + ["---:"] * (len(cells.header) - 1)
    lines = [cells.header, rule, *cells.rows]
    # A bar would end the cell it stands in.
    safe = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in safe)


def machine(environment: Mapping[str, Any]) -> dict[str, str]:
    """What ``environment.json`` says of versions and devices, as name and text.

    Args:
        environment: with ``versions``, ``python``, ``commit`` and ``devices``; each may be missing.
    """
    versions = {"Python": environment.get("python"), **environment.get("versions", {})}
    known = [f"{name} {version}" for name, version in versions.items() if version]
    return {
        "Versions": ", ".join(known) or UNDEFINED,
        "Commit": environment.get("commit") or UNDEFINED,
        "Devices": ", ".join(environment.get("devices", [])) or UNDEFINED,
    }
