"""What a look at all cases together shows: the seeded split, oddities, the summary table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

SPACING_FACTOR, SIZE_FACTOR, INTENSITY_FACTOR = 1.25, 1.5, 5.0
"""A case this many times above or below the median of all cases is called an outlier."""

RARE_CLASS = 1e-4
"""Share of all labelled voxels below which a class is called rare."""

_NAMED = 6
"""Cases named in one finding; the rest are counted."""


def seeded_split(cases: dict[str, dict], fraction: float, seed: int) -> dict[str, list[str]]:
    """Split the labelled training cases by subject, the same for the same seed and cases.

    Subjects that share an identical scan are kept together. About ``fraction`` of the groups, at
    least one and never all, are held out; a single group leaves validation empty.

    Args:
        cases: the manifest's cases.
        fraction: share of the groups to validate on.
        seed: of the draw.

    Returns:
        Names under ``train`` and ``validation``, sorted.
    """
    usable = {n: c for n, c in cases.items() if c["labelled"] and c["part"] == "train"}
    group = {case["subject"]: case["subject"] for case in usable.values()}

    def head(subject: str) -> str:
        while group[subject] != subject:
            subject = group[subject]
        return subject

    for twins in _identical(usable):
        first, *others = sorted({head(usable[name]["subject"]) for name in twins})
        group.update(dict.fromkeys(others, first))
    members: dict[str, list[str]] = defaultdict(list)
    for name, case in sorted(usable.items()):
        members[head(case["subject"])].append(name)
    groups = sorted(members)
    count = min(max(1, round(fraction * len(groups))), len(groups) - 1) if groups else 0
    order = np.random.default_rng(seed).permutation(len(groups))
    held = {groups[k] for k in order[: max(0, count)]}
    return {
        "train": sorted(n for g in groups if g not in held for n in members[g]),
        "validation": sorted(n for g in held for n in members[g]),
    }


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
        *_identical_findings(manifest),
        *_geometry_findings(cases),
        *_intensity_findings(cases, manifest["channels"]),
        *_label_findings(manifest),
    ]


def _identical(cases: dict[str, dict]) -> list[list[str]]:
    by_hash: dict[str, list[str]] = defaultdict(list)
    for name, case in cases.items():
        by_hash[case["voxel_hash"]].append(name)
    return [names for names in by_hash.values() if len(names) > 1]


def _split_findings(manifest: dict[str, Any]) -> Iterable[str]:
    cases = manifest["cases"]
    unlabelled = [n for n, c in cases.items() if not c["labelled"] and c["part"] == "train"]
    if len(unlabelled) == len(cases):
        yield "no case is labelled: the store serves pre-training only"
    elif unlabelled:
        yield f"unlabelled, for pre-training only: {_names(unlabelled)}"
    for number, split in enumerate(manifest["splits"]):
        if not split["validation"]:
            yield f"split {number} validates on nothing"
        sides = [{cases[name]["subject"] for name in split[side]} for side in split]
        if shared := sorted(sides[0] & sides[1]):
            yield f"split {number} has subjects on both sides: {_names(shared)}"


def _identical_findings(manifest: dict[str, Any]) -> Iterable[str]:
    for twins in _identical(manifest["cases"]):
        line = f"identical scans under different names: {_names(twins)}"
        for number, split in enumerate(manifest["splits"]):
            if set(twins) & set(split["train"]) and set(twins) & set(split["validation"]):
                line += f", on both sides of split {number}"
        yield line


def _geometry_findings(cases: dict[str, dict]) -> Iterable[str]:
    slicing: dict[str, list[str]] = defaultdict(list)
    for name, case in cases.items():
        if case["slice_axis"] is not None:
            plane = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal"}
            slicing[plane.get(case["orientation"][case["slice_axis"]], "axial")].append(name)
    if len(slicing) > 1:
        for plane, names in sorted(slicing.items(), key=lambda item: len(item[1]))[:-1]:
            yield f"sliced in the {plane} plane unlike most: {_names(names)}"

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
        yield f"no foreground: {_names(empty)}"
    total = sum(sum(voxels.values()) for voxels in labelled.values())
    for key, label in names.items():
        count = sum(voxels[key] for voxels in labelled.values())
        lacking = [n for n, voxels in labelled.items() if not voxels[key] and n not in empty]
        if labelled and count == 0:
            yield f"{label} is in no case"
        elif lacking:
            yield f"{label} is missing in {_names(lacking)}"
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
        yield f"{text.replace('{}', found)}, where the median is {_times(median)}: {_names(names)}"


def _times(values: Iterable[Any]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)


def _names(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


def summary(manifest: dict[str, Any]) -> Group:
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
    facts.add_row("channels", ", ".join(manifest["channels"]))
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
        facts.add_row(f"intensities of {channel}", f"{low.min():.4g} to {high.max():.4g}")

    classes = Table("class", "share of voxels", "cases with it")
    total = sum(sum(case["voxels"].values()) for case in labelled)
    for name, number in manifest["labels"].items():
        counts = [case["voxels"][str(number)] for case in labelled]
        share = f"{100 * sum(counts) / total:.3f} %" if total else "–"
        classes.add_row(f"{number} {name}", share, f"{sum(map(bool, counts))} of {len(counts)}")
    lines = [Text(f"! {line}", style="yellow") for line in manifest["findings"]]
    return Group(facts, classes, *(lines or [Text("nothing odd found")]))


def _range(values: np.ndarray, style: str) -> str:
    """Each axis as its value, or its least and greatest."""
    pairs = zip(values.min(axis=0).tolist(), values.max(axis=0).tolist(), strict=True)
    return " × ".join(
        format(low, style) if low == high else f"{low:{style}}–{high:{style}}"
        for low, high in pairs
    )
