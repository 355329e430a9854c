"""What a look at all cases together shows: leaks, oddities, the summary table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from penn_jax.data.leaks import identical, listed, pretraining_pool, split_leaks
from penn_jax.data.manifest import Manifest

SPACING_FACTOR, SIZE_FACTOR, INTENSITY_FACTOR = 1.25, 1.5, 5.0
"""A case this many times above or below the median of all cases is called an outlier."""

RARE_CLASS = 1e-4
"""Share of all labelled voxels below which a class is called rare."""


def findings(manifest: dict[str, Any]) -> list[str]:
    """Everything odd about the cases, one line each.

    Args:
        manifest: of the prepared store, without its ``findings``.

    Returns:
        Lines of plain text, none where nothing is odd.
    """
    cases = manifest["cases"]
    return [
        *_split_findings(manifest),
        *split_leaks(cases, manifest["splits"]),
        *_identical_findings(manifest),
        *_pretraining_findings(manifest),
        *_geometry_findings(cases),
        *_intensity_findings(cases, manifest["channels"]),
        *_label_findings(manifest),
    ]


def _split_findings(manifest: dict[str, Any]) -> Iterable[str]:
    cases = manifest["cases"]
    unlabelled = [n for n, c in cases.items() if not c["labelled"] and c["part"] == "train"]
    if len(unlabelled) == len(cases):
        yield "no case is labelled: the store serves pre-training only"
    elif unlabelled:
        yield f"unlabelled, for pre-training only: {listed(unlabelled)}"
    for number, split in enumerate(manifest["splits"]):
        if not split["validation"]:
            yield f"split {number} validates on nothing"


def _identical_findings(manifest: dict[str, Any]) -> Iterable[str]:
    for twins in identical(manifest["cases"]):
        yield f"identical scans under different names: {listed(twins)}"


def _pretraining_findings(manifest: dict[str, Any]) -> Iterable[str]:
    for number, split in enumerate(manifest["splits"]):
        _, left_out = pretraining_pool(manifest["cases"], split)
        if left_out:
            pairs = listed(f"{name} (as {relative})" for name, relative in left_out.items())
            yield (
                f"left out of pre-training on split {number}, the same scan or subject "
                f"as a validation or test case: {pairs}"
            )


def _geometry_findings(cases: dict[str, dict]) -> Iterable[str]:
    slicing: dict[str, list[str]] = defaultdict(list)
    for name, case in cases.items():
        if case["slice_axis"] is not None:
            plane = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal"}
            slicing[plane.get(case["orientation"][case["slice_axis"]], "axial")].append(name)
    if len(slicing) > 1:
        for plane, names in sorted(slicing.items(), key=lambda item: len(item[1]))[:-1]:
            yield f"sliced in the {plane} plane unlike most: {listed(names)}"

    spacings = {n: sorted(c["native_spacing"]) for n, c in cases.items()}
    yield from _outliers(spacings, SPACING_FACTOR, "spacing {} mm")
    sizes = {n: c["frames_shape"][1:-1] for n, c in cases.items()}
    yield from _outliers(sizes, SIZE_FACTOR, "frames of {} voxels")
    slices = {n: c["frames_shape"][:1] for n, c in cases.items()}
    yield from _outliers(slices, SIZE_FACTOR, "{} slices")


def _intensity_findings(cases: dict[str, dict], channels: list[str]) -> Iterable[str]:
    for k, channel in enumerate(channels):
        spans = {
            n: [c["intensity"]["percentile_99"][k] - c["intensity"]["minimum"][k]]
            for n, c in cases.items()
        }
        yield from _outliers(spans, INTENSITY_FACTOR, channel + " spans {} units")


def _label_findings(manifest: dict[str, Any]) -> Iterable[str]:
    labelled = {n: c["voxels"] for n, c in manifest["cases"].items() if c["labelled"]}
    names = {str(number): name for name, number in manifest["labels"].items() if number != 0}
    values = manifest["label_values"]
    if values != list(range(len(values))):
        pairs = ", ".join(f"{value} is class {number}" for number, value in enumerate(values))
        yield f"values in the label files are renumbered: {pairs}"
    empty = [n for n, voxels in labelled.items() if not any(voxels[k] for k in names)]
    if empty:
        yield f"no foreground: {listed(empty)}"
    total = sum(sum(voxels.values()) for voxels in labelled.values())
    for key, label in names.items():
        count = sum(voxels[key] for voxels in labelled.values())
        lacking = [n for n, voxels in labelled.items() if not voxels[key] and n not in empty]
        if labelled and count == 0:
            yield f"{label} is in no case"
        elif lacking:
            yield f"{label} is missing in {listed(lacking)}"
        if 0 < count < RARE_CLASS * total:
            yield f"{label} is rare: {count / total:.1g} of the voxels"


def _outliers(values: dict[str, list], factor: float, text: str) -> Iterable[str]:
    """Cases that differ from the median by more than the factor, one line for each value."""
    median = np.maximum(np.median(list(values.values()), axis=0), 1e-12)
    odd: dict[str, list[str]] = defaultdict(list)
    for name, found in values.items():
        ratio = np.maximum(np.asarray(found, float), 1e-12) / median
        if max(ratio.max(), 1 / ratio.min()) > factor:
            odd[_times(found)].append(name)
    for found, names in odd.items():
        yield f"{text.replace('{}', found)}, where the median is {_times(median)}: {listed(names)}"


def _times(values: Iterable[Any]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)


def summary(manifest: Manifest) -> Group:
    """The manifest as a person wants to see it: counts, geometry, classes, findings.

    Args:
        manifest: of a prepared store.

    Returns:
        Something for rich to print.
    """
    cases = list(manifest["cases"].values())
    labelled = [case for case in cases if case["labelled"]]
    sizes = np.array([case["frames_shape"] for case in cases])
    spacing = np.array([case["native_spacing"] for case in cases])
    facts = Table.grid(padding=(0, 2))
    test = sum(case["part"] == "test" for case in cases)
    facts.add_row(
        "cases",
        f"{len(cases)} of {len({case['subject'] for case in cases})} subjects, "
        f"{len(labelled)} labelled, {test} for testing",
    )
    for number, split in enumerate(manifest["splits"]):
        facts.add_row(
            f"split {number}", f"{len(split['train'])} train, {len(split['validation'])} validation"
        )
    facts.add_row("channels", escape(", ".join(manifest["channels"])))
    facts.add_row("orientation", ", ".join(sorted({case["orientation"] for case in cases})))
    facts.add_row("spacing in the files", f"{_range(spacing, '.3g')} mm")
    target = manifest["spacing"]
    prepared = "native" if target is None else f"{_times(target)} mm"
    facts.add_row("spacing of the frames", prepared)
    facts.add_row(
        "slices a case" if manifest["dimensions"] == 2 else "frames a case",
        f"{_range(sizes[:, :1], 'd')} ({sizes[:, 0].sum()} in all)",
    )
    facts.add_row("size of a frame", _range(sizes[:, 1:-1], "d"))
    for k, channel in enumerate(manifest["channels"]):
        extremes = [(c["intensity"]["minimum"][k], c["intensity"]["maximum"][k]) for c in cases]
        low, high = np.array(extremes).T
        facts.add_row(f"intensities of {escape(channel)}", f"{low.min():.4g} to {high.max():.4g}")

    classes = Table("class", "share of voxels", "cases with it")
    total = sum(sum(case["voxels"].values()) for case in labelled)
    for name, number in manifest["labels"].items():
        counts = [case["voxels"][str(number)] for case in labelled]
        share = f"{100 * sum(counts) / total:.3f} %" if total else "–"
        classes.add_row(
            f"{number} {escape(name)}", share, f"{sum(map(bool, counts))} of {len(counts)}"
        )
    lines = [Text(f"! {line}", style="yellow") for line in manifest["findings"]]
    return Group(facts, classes, *(lines or [Text("nothing odd found")]))


def _range(values: np.ndarray, style: str) -> str:
    """Each axis as its value, or its least and greatest."""
    pairs = zip(values.min(axis=0).tolist(), values.max(axis=0).tolist(), strict=True)
    return " × ".join(
        format(low, style) if low == high else f"{low:{style}}–{high:{style}}"
        for low, high in pairs
    )
