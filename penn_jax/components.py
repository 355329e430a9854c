"""Connected components of a mask: counted, dropped where small, and what is small chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8
from rich.table import Table
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from penn_jax.report.metrics import Confusion, case_metrics, mean_over_cases
from penn_jax.types import IGNORE_LABEL

_SLAB = 1 << 22
"""Voxels whose components are numbered at once: what that takes must not grow with the scan."""
_VOLUMES = 20  # candidates at most, 0 included
_LEAST_GAIN = 0.001  # of mean Dice: for less, a component is not worth the risk of dropping it


class Components(NamedTuple):
    """The n components of one predicted mask."""

    label: Int64[np.ndarray, " n"]
    """What each counts as in the metrics."""
    volume: Float64[np.ndarray, " n"]
    """mm³, ignored voxels included: a prediction knows of none."""
    right: Int64[np.ndarray, " n"]
    """Voxels whose reference has the label."""
    wrong: Int64[np.ndarray, " n"]
    """Voxels whose reference has another; ignored ones are neither."""


def drop_small_components(
    mask: UInt8[np.ndarray, "X Y Z"], spacing: Sequence[float], smallest: float
) -> None:
    """Make background of every connected component below a volume, class by class, in place.

    Voxels of one class that touch by a face, an edge or a corner (26 neighbours) are connected.

    Args:
        mask: classes, 0 is background.
        spacing: of the voxels, mm.
        smallest: volume in mm³ of the smallest component that stays; 0 keeps all.
    """
    if smallest <= 0:
        return
    for _, box, components in _each_class(mask):
        small = _is_small(np.bincount(components.ravel()) * math.prod(spacing), smallest)
        small[0] = False  # the voxels of no component
        mask[box][small[components]] = 0


def count_components(
    mask: UInt8[np.ndarray, "X Y Z"], classes: int
) -> tuple[Int64[np.ndarray, " foreground"], Int64[np.ndarray, " foreground"]]:
    """Voxels and connected components (26 neighbours) of each foreground class.

    Slab by slab: neighbouring slabs share a plane, and parts of both that have a voxel of it in
    common are one component.

    Args:
        mask: classes, 0 is background.
        classes: K, background included.
    """
    depth = max(1, _SLAB // max(1, mask[0].size))
    voxels, parts = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    joints: list[list[np.ndarray]] = [[] for _ in range(classes)]
    shared: dict[int, np.ndarray] = {}
    for first in range(0, len(mask), depth):
        voxels += np.bincount(mask[first : first + depth].ravel(), minlength=classes)
        slab, last = mask[max(0, first - 1) : first + depth], shared
        shared = {}
        for number, box, components in _each_class(slab):
            components[components > 0] += parts[number]
            parts[number] = components.max()
            rows, *inside = box
            if rows.start == 0 and number in last:
                pairs = np.stack([last[number][tuple(inside)], components[0]])
                joints[number].append(np.unique(pairs[:, pairs[0] > 0], axis=1))
            if rows.stop == len(slab):
                shared[number] = np.zeros(slab.shape[1:], np.int32)
                shared[number][tuple(inside)] = components[-1]
    counts = [_joined(parts[number], joints[number]) for number in range(1, classes)]
    return voxels[1:], np.array(counts, np.int64)


def _joined(parts: int, joints: Sequence[np.ndarray]) -> int:
    """How many are left of numbered parts when pairs of them are one."""
    if not joints:
        return parts
    one, other = np.concatenate(joints, axis=1) - 1
    pairs = coo_array((np.ones(len(one), bool), (one, other)), shape=(parts, parts))
    return connected_components(pairs, directed=False)[0]


def measure_components(
    mask: UInt8[np.ndarray, "X Y Z"],
    reference: UInt8[np.ndarray, "X Y Z"],
    spacing: Sequence[float],
    merged: bool = False,
) -> Components:
    """Measure what dropping each component would change.

    Args:
        mask: predicted classes, as ``drop_small_components`` would get them.
        reference: labels taken as true; ``IGNORE_LABEL`` is left out.
        spacing: of the voxels, mm.
        merged: every class counts as label 1, and the reference has no other.
    """
    parts = []
    for number, box, components in _each_class(mask):
        label, true = (1 if merged else number), reference[box]
        everywhere = np.ones(true.shape, bool)
        voxels, right, wrong = (
            np.bincount(components[where], minlength=components.max() + 1)[1:]
            for where in (everywhere, true == label, (true != label) & (true != IGNORE_LABEL))
        )
        volume = voxels * math.prod(spacing)
        parts.append(Components(np.full(len(voxels), label), volume, right, wrong))
    if not parts:
        nothing = np.zeros(0, np.int64)
        return Components(nothing, np.zeros(0), nothing, nothing)
    return Components(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _each_class(
    mask: UInt8[np.ndarray, "X Y Z"],
) -> Iterator[tuple[int, tuple[slice, ...], Int32[np.ndarray, "x y z"]]]:
    """Each class with the box around its voxels and the numbers of its components in there."""
    for number, box in enumerate(ndimage.find_objects(mask), start=1):
        if box is None:
            continue
        part = mask[box] == number
        components = np.empty(part.shape, np.int32)
        ndimage.label(part, np.ones((3, 3, 3)), output=components)
        yield number, box, components


def _is_small(volumes: Float64[np.ndarray, " n"], smallest: float) -> np.ndarray:
    # A rounding error of the spacing must not decide about a component of just this volume.
    return volumes < smallest * (1 - 1e-6)


# ---- the choice --------------------------------------------------------------------------------


def choose_volume(
    counts: Sequence[Confusion], components: Sequence[Components], first_label: int = 1
) -> dict[str, Any]:
    """Choose the volume below which dropping components gives the best mean Dice over cases.

    Args:
        counts: of each case with nothing dropped, one entry a label.
        components: of the same cases.
        first_label: the label of the first entry of the counts; the others follow it.

    Returns:
        Plain JSON types: ``smallest_component``, the smallest of the best volumes in mm³, 0 where
        none gains 0.001; ``gain_ci95``, the paired 95 % interval of its gain, None for
        0, for a single case, and where dropping leaves a case without foreground in either mask,
        whose Dice is then undefined; ``volumes``, one entry a candidate: ``volume``, ``dice``,
        ``difference`` to dropping nothing and ``n``, the cases whose Dice is defined.
    """
    volumes = _candidates(np.concatenate([case.volume for case in components]))
    dice = np.array(
        [
            [
                case_metrics(_without_small(count, case, volume, first_label))["dice"]
                for count, case in zip(counts, components, strict=True)
            ]
            for volume in volumes
        ]
    )
    means = [mean_over_cases(values) for values in dice]
    value = np.array([math.nan if mean["value"] is None else mean["value"] for mean in means])
    gain = np.nan_to_num(value - value[0], nan=-math.inf)
    chosen = int(np.argmax(gain >= gain.max() - 1e-12))  # the first of equals
    if gain[chosen] < _LEAST_GAIN:
        chosen = 0
    interval = None
    if chosen and means[chosen]["n"] == means[0]["n"]:
        interval = mean_over_cases(dice[chosen] - dice[0], (-1.0, 1.0))["ci95"]
    return {
        "smallest_component": volumes[chosen],
        "gain_ci95": None if interval is None else list(interval),
        "volumes": [
            {
                "volume": volume,
                "dice": mean["value"],
                "difference": None if math.isnan(mine) else float(mine - value[0]),
                "n": mean["n"],
            }
            for volume, mean, mine in zip(volumes, means, value, strict=True)
        ],
    }


def _candidates(volumes: Float64[np.ndarray, " n"]) -> list[float]:
    """0, and values just above the volumes that occur, thinned by quantiles.

    Just above: of all the values that drop the same components, the one nearest to those keeps the
    most of other scans. Three digits, so that what is printed is what was tried.
    """
    # Distinct first: specks are many, and would leave the quantiles nothing but specks.
    above = np.unique([float(f"{1.01 * volume:.3g}") for volume in volumes])
    if len(above) > _VOLUMES - 1:
        levels = np.linspace(0, 1, _VOLUMES - 1)
        above = np.unique(np.quantile(above, levels, method="nearest"))
    return [0.0, *above.tolist()]


def _without_small(
    counts: Confusion, components: Components, smallest: float, first_label: int
) -> Confusion:
    """The counts after the components below a volume have become background."""
    small = _is_small(components.volume, smallest)
    right, wrong = np.zeros((2, len(counts.true_positive)), np.int64)
    index = components.label[small] - first_label
    np.add.at(right, index, components.right[small])
    np.add.at(wrong, index, components.wrong[small])
    return Confusion(
        counts.true_positive - right,
        counts.false_positive - wrong,
        counts.false_negative + right,
        counts.true_negative + wrong,
    )


# ---- for the terminal --------------------------------------------------------------------------


def choice_table(choice: Mapping[str, Any]) -> Table:
    """One row a candidate volume of what ``choose_volume`` returns."""
    table = Table()
    for name in ("Volume (mm³)", "Mean Dice (%)", "Difference", "Cases"):
        table.add_column(name, justify="right")
    for row in choice["volumes"]:
        dice, difference = row["dice"], row["difference"]
        table.add_row(
            f"{row['volume']:g}",
            "–" if dice is None else f"{dice * 100:.2f}",
            "–" if difference is None else f"{difference * 100:+.2f}",
            str(row["n"]),
        )
    return table


def choice_lines(choice: Mapping[str, Any]) -> list[str]:
    """What to do with the choice, and a warning where it may be chance."""
    chosen, interval = choice["smallest_component"], choice["gain_ci95"]
    lines = [f"use penn predict --smallest-component {chosen:g}"]
    if chosen and interval is None:
        lines.append("warning: the gain has no interval: one case, or fewer with a defined Dice")
    elif chosen and interval[0] <= 0 <= interval[1]:
        low, high = (f"{end * 100:+.2f}" for end in interval)
        lines.append(f"warning: the 95 % interval of the gain, {low} to {high} %, includes 0")
    return lines
