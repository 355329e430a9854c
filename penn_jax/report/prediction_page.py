"""The page of predicted masks without a reference: what was found, and which to look at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penn_jax.report import plots
from penn_jax.report.html import page, svg
from penn_jax.report.slices import Views
from penn_jax.report.tables import UNDEFINED, Cells, number

Predictions = Mapping[str, Mapping[str, Any]]
"""Case -> what ``predictions.json`` says of it."""


def prediction_page(
    name: str, predictions: Predictions, views: Mapping[str, Views], not_drawn: Sequence[str]
) -> str:
    """One HTML file, a function of its arguments alone.

    Args:
        name: of the folder.
        predictions: at least one, all of the same classes.
        views: title -> the slices of a case.
        not_drawn: why pictures are missing.
    """
    ranked = by_confidence(predictions)
    cases = list(predictions.values())
    classes = list(cases[0]["classes"])
    sections = {
        "classes": "What was found",
        "confidence": "Confidence",
        "slices": "Least and most certain masks" if views or not_drawn else None,
        "warnings": "Warnings",
        "cases": "Cases",
        "origin": "Where they come from",
    }
    return page(
        "predictions.html",
        title=f"Masks in {name}",
        sections={anchor: title for anchor, title in sections.items() if title is not None},
        cases=len(cases),
        empty=sum(not found(case) for case in cases),
        warned=sum(len(case["warnings"]) > (not found(case)) for case in cases),
        uncompared=sum(not case["training_cases"] for case in cases),
        class_cells=_class_cells(cases, classes),
        case_cells=_case_cells({case: predictions[case] for case in ranked}, classes),
        warning_cells=_warning_cells({case: predictions[case] for case in ranked}),
        plot=_plot([predictions[case]["confidence"] for case in ranked]),
        views=views,
        not_drawn=not_drawn,
        confidence={case: number(predictions[case]["confidence"], 100.0) for case in predictions},
        foreground=classes,
        origin=_origin(cases),
    )


def by_confidence(predictions: Predictions) -> list[str]:
    """The cases, the least certain first."""
    return sorted(predictions, key=lambda case: (predictions[case]["confidence"], case))


def found(prediction: Mapping[str, Any]) -> bool:
    """Whether there is anything in the mask."""
    return any(part["components"] for part in prediction["classes"].values())


def telling_cases(predictions: Predictions) -> dict[str, str]:
    """The least and the most certain masks that hold anything, as far as there are that many."""
    ranked = [case for case in by_confidence(predictions) if found(predictions[case])]
    if len(ranked) < 3:
        return dict(zip(("Least certain", "Most certain"), ranked, strict=False))
    titles = ("Least certain", "Second least certain", "Most certain")
    return dict(zip(titles, (ranked[0], ranked[1], ranked[-1]), strict=True))


def _plot(qualities: Sequence[float]) -> str:
    heights = np.array(qualities, np.float64)
    places = 100 * (np.arange(len(heights)) + 0.5) / len(heights)
    line = plots.Curve(places, heights, 0)
    figure = plots.curves([line], "share of masks, %", "confidence", share=True)
    described = "Confidence of every mask, from the least on the left to the most on the right."
    return svg(figure, "confidence", described)


def _class_cells(cases: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Cells:
    rows = []
    for name in classes:
        parts = [case["classes"][name] for case in cases if case["classes"][name]["components"]]
        volumes, components = ([part[key] for part in parts] for key in ("volume", "components"))
        rows.append(
            (
                name,
                f"{len(parts)} of {len(cases)}",
                *(_volume(value) for value in _ends(volumes)),
                *(UNDEFINED if value is None else f"{value:g}" for value in _ends(components)),
            )
        )
    volume = [f"{which} volume (mm³)" for which in ("Smallest", "Median", "Largest")]
    count = [f"{which} components" for which in ("Fewest", "Median", "Most")]
    return Cells(("Class", "Masks with it", *volume, *count), rows)


def _ends(values: Sequence[float | int]) -> list[float | None]:
    """The least, the median and the greatest."""
    return np.percentile(values, (0, 50, 100)).tolist() if values else [None] * 3


def _case_cells(predictions: Predictions, classes: Sequence[str]) -> Cells:
    header = ["Case", "Confidence (%)"]
    for name in classes:
        header += [f"{name} (mm³)", f"{name}, components", f"{name}, expected Dice (%)"]
    rows = []
    for case, prediction in predictions.items():
        row = [case, number(prediction["confidence"], 100.0)]
        for name in classes:
            part = prediction["classes"][name]
            row += [
                _volume(part["volume"]),
                str(part["components"]),
                number(part["expected_dice"], 100.0),
            ]
        rows.append(row)
    return Cells(header, rows)


def _warning_cells(predictions: Predictions) -> Cells:
    rows = [
        (case, "; ".join(prediction["warnings"]))
        for case, prediction in predictions.items()
        if prediction["warnings"]
    ]
    return Cells(("Case", "Warning"), rows)


def _volume(value: float | None) -> str:
    if value is None:
        return UNDEFINED
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _origin(cases: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What made the masks, each once."""

    def told(texts: Sequence[str]) -> str:
        return ", ".join(dict.fromkeys(texts))

    return {
        "Models": told([" and ".join(case["models"]) for case in cases]),
        "Evaluated by": told([case["engine"] for case in cases]),
        "Averaged over mirrorings": told(["yes" if case["mirror"] else "no" for case in cases]),
        "Training cases compared with": told([str(case["training_cases"]) for case in cases]),
    }
