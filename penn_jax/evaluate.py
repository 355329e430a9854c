"""Compares a folder of predicted masks with a folder of reference masks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import track

from penn_jax.components import Components, choose_volume, measure_components
from penn_jax.config import write_json
from penn_jax.data.files import nifti_files, stem
from penn_jax.data.volume import check_same_grid, read_geometry, read_labels
from penn_jax.report.metrics import (
    METRICS,
    POLICY,
    Confusion,
    case_metrics,
    confusion,
    mean_over_cases,
    pooled_intervals,
    pooled_metrics,
    six_metrics,
    total,
)
from penn_jax.report.surface import SurfaceDistances, surface_distances
from penn_jax.types import IGNORE_LABEL, InputError

_FOREGROUND = range(1, IGNORE_LABEL)  # every label that a uint8 mask can hold, but 0 and 255


class _Case(NamedTuple):
    counts: Confusion
    """Of every label in ``_FOREGROUND``."""
    surfaces: dict[int, SurfaceDistances]
    """Of the labels that are in both masks."""
    ignored: bool
    """Whether the reference has voxels to leave out."""
    components: Components | None
    """Of the prediction, where a volume is to be chosen."""


def evaluate(
    predictions: Path,
    references: Path,
    merge_labels: bool = False,
    cases: Sequence[str] | None = None,
    out: Path | None = None,
    progress: bool = False,
    choose_component: bool = False,
) -> dict[str, Any]:
    """The six metrics, pooled and averaged over cases, and surface distances in mm.

    Args:
        predictions: folder of ``<case>.nii.gz`` or ``<case>.nii`` masks; one for every reference.
        references: folder of masks named alike; 0 is background, 255 is left out.
        merge_labels: every label becomes one foreground class, in both folders.
        cases: only these, for instance the validation part of a split; None means all references.
        out: JSON file for the result, written whole or not at all.
        progress: show a progress bar where stderr is a terminal.
        choose_component: also find the volume below which components are best dropped; for
            validation cases, predicted with none dropped.

    Returns:
        Plain JSON types, None where a value is undefined: ``pooled`` and ``pooled_ci95`` by
        metric; ``mean`` by metric, each ``{"value", "ci95", "n"}``; ``cases`` by name and
        ``labels`` by label, with the same metrics; ``policy`` on empty masks; ``extra``, the
        predictions without a reference, which count for nothing; ``left_out``, the references that
        ``cases`` does not name; ``component_choice``, if asked for, as ``choose_volume`` says.

    Raises:
        InputError: a folder without masks, a reference without a prediction, masks on different
            grids, or labels that cannot be meant.
    """
    if out is not None:
        _check_writable(out)
    predicted, true = _find_masks(predictions), _find_masks(references)
    names = _select(predictions, predicted, references, true, cases)
    compared: dict[str, _Case] = {}
    console = Console(stderr=True)
    quiet = not (progress and console.is_terminal)
    for name in track(names, "Evaluating", console=console, disable=quiet, transient=True):
        compared[name] = _compare(predicted[name], true[name], merge_labels, choose_component)
    _check_labelled(references, compared.values())
    result = _summarise(compared)
    result["policy"] = POLICY
    result["extra"] = sorted(set(predicted) - set(true))
    result["left_out"] = sorted(set(true) - set(names))
    if choose_component:
        counts = [case.counts for case in compared.values()]
        components = [case.components for case in compared.values() if case.components is not None]
        result["component_choice"] = choose_volume(counts, components, _FOREGROUND.start)
    if out is not None:
        write_json(out, result)
    return result


def _check_writable(out: Path) -> None:
    """Refuse before the work what would fail after it."""
    if not out.parent.is_dir():
        raise InputError(out, "its folder does not exist", "an existing folder", "create it")
    if out.is_dir():
        raise InputError(out, "is a folder", "a JSON file", "name a file in it")


def _find_masks(folder: Path) -> dict[str, Path]:
    """Case name -> file, sorted by name."""
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "a folder of masks", "check the path")
    masks: dict[str, Path] = {}
    for path in nifti_files(folder.iterdir()):
        name = stem(path)
        if name in masks:
            raise InputError(
                path, f"a second file for case {name}", "one mask a case", "remove one of the two"
            )
        masks[name] = path
    if not masks:
        raise InputError(folder, "no masks", "<case>.nii.gz or <case>.nii", "check the path")
    return masks


def _select(
    predictions: Path,
    predicted: dict[str, Path],
    references: Path,
    true: dict[str, Path],
    cases: Sequence[str] | None,
) -> list[str]:
    """The names to compare, each of which has both masks."""
    names = sorted(true) if cases is None else sorted(set(cases))
    if not names:
        raise InputError(references, "no case was named", "one at least", "name a case")
    if unknown := [name for name in names if name not in true]:
        raise InputError(
            references,
            f"no reference for {_listing(unknown, len(names))}",
            "a mask for each case asked for",
            "check the names of the cases",
        )
    if missing := [name for name in names if name not in predicted]:
        raise InputError(
            predictions,
            f"no prediction for {_listing(missing, len(names))}",
            "a mask for each reference",
            "predict the missing cases, a case left out cannot be judged",
        )
    return names


def _listing(names: Sequence[str], of: int) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} of {of} cases ({shown})"


def _compare(predicted: Path, true: Path, merge_labels: bool, choose_component: bool) -> _Case:
    """Count pixels and measure surfaces, and components if asked, of one case."""
    # The headers first: a mask of another size is not worth its memory.
    check_same_grid(predicted, read_geometry(predicted), true, read_geometry(true))
    prediction, reference = read_labels(predicted), read_labels(true)
    if (prediction.array == IGNORE_LABEL).any():
        raise InputError(
            predicted,
            f"predicted label {IGNORE_LABEL}, which stands for voxels to ignore",
            f"labels 0 to {IGNORE_LABEL - 1}",
            "write foreground as 1, 2, …",
        )
    first, second = prediction.array, reference.array
    if merge_labels:
        first, second = _merged(first), _merged(second)
    components = None
    if choose_component:  # of the classes as predicted: penn predict drops before anything merges
        components = measure_components(prediction.array, second, prediction.spacing, merge_labels)
    # A single slice is a plane: kept as a volume, each of its voxels would lie on the surface.
    flat = tuple(axis for axis, size in enumerate(first.shape) if size == 1)[:2]
    first, second = first.squeeze(flat), second.squeeze(flat)
    spacing = [mm for axis, mm in enumerate(reference.spacing) if axis not in flat]

    counts = confusion(first, second, _FOREGROUND)
    ignored = second == IGNORE_LABEL
    in_both = (counts.in_prediction > 0) & (counts.in_reference > 0)
    surfaces = {
        label: surface_distances((first == label) & ~ignored, second == label, spacing)
        for label, here in zip(_FOREGROUND, in_both, strict=True)
        if here
    }
    return _Case(counts, surfaces, bool(ignored.any()), components)


def _merged(labels: UInt8[np.ndarray, "X Y Z"]) -> UInt8[np.ndarray, "X Y Z"]:
    foreground = (labels != 0) & (labels != IGNORE_LABEL)
    return np.where(foreground, np.uint8(1), labels)


def _check_labelled(references: Path, compared: Iterable[_Case]) -> None:
    """Binary masks written as 0 and 255 would be ignored where they matter: refuse them."""
    cases = list(compared)
    labelled = any(case.counts.in_reference.any() for case in cases)
    if not labelled and any(case.ignored for case in cases):
        raise InputError(
            references,
            f"no label but {IGNORE_LABEL}, whose voxels are ignored",
            f"foreground labels 1 to {IGNORE_LABEL - 1}",
            "write foreground as 1, 2, …",
        )


def _summarise(compared: dict[str, _Case]) -> dict[str, Any]:
    """Pool, average and lay out the results as the JSON file has them."""
    names = list(compared)
    everywhere = total([case.counts for case in compared.values()])
    labels = [label for label, here in zip(_FOREGROUND, everywhere.present, strict=True) if here]
    labels = labels or [1]
    index = [label - _FOREGROUND.start for label in labels]
    counts = {name: compared[name].counts.select(index) for name in names}
    pooled = total(list(counts.values()))

    cases = {}
    for name in names:
        by_label = _by_label(labels, counts[name], compared[name].surfaces)
        cases[name] = case_metrics(counts[name]) | _mean_distances(by_label) | {"labels": by_label}
    in_label = {
        str(label): {
            "pooled": {metric: value[position] for metric, value in six_metrics(pooled).items()},
            "mean": _means([cases[name]["labels"][str(label)] for name in names]),
        }
        for position, label in enumerate(labels)
    }
    return _plain(
        {
            "pooled": pooled_metrics(pooled),
            "pooled_ci95": pooled_intervals(list(counts.values())),
            "mean": _means([cases[name] for name in names]),
            "cases": cases,
            "labels": in_label,
        }
    )


def _by_label(
    labels: Sequence[int], counts: Confusion, surfaces: dict[int, SurfaceDistances]
) -> dict[str, dict[str, float]]:
    """Label -> its metrics in one case."""
    six = six_metrics(counts)
    undefined = SurfaceDistances(math.nan, math.nan)
    return {
        str(label): {metric: six[metric][position] for metric in METRICS}
        | surfaces.get(label, undefined)._asdict()
        for position, label in enumerate(labels)
    }


def _mean_distances(by_label: dict[str, dict[str, float]]) -> dict[str, float]:
    """The distances of a case: the mean over the labels that are in both masks."""
    means = {}
    for metric in SurfaceDistances._fields:
        defined = [v[metric] for v in by_label.values() if not math.isnan(v[metric])]
        means[metric] = float(np.mean(defined)) if defined else math.nan
    return means


def _means(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metric -> mean over cases with its interval."""
    bounds = dict.fromkeys(METRICS, (0.0, 1.0))
    bounds |= dict.fromkeys(SurfaceDistances._fields, (0.0, math.inf))
    return {
        metric: mean_over_cases(np.array([case[metric] for case in cases]), possible)
        for metric, possible in bounds.items()
    }


def _plain(value: Any) -> Any:
    """The same as plain JSON types, None for NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    return value
