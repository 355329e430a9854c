"""What the scans of a training set look like, and what about another scan is unlike them.

Geometry in mm, and of the intensities one number that their unit, scale and offset do not change:
where the median lies between the darkest voxel and the 99th percentile. Air, tissue and contrast
each move it, as does another kind of sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Len, Lt, MinLen
from typing_extensions import TypedDict

_SLACK = 1.1
"""How far beyond the ends of a range, as a factor, nothing is said yet."""
_AXES = ("right to left", "back to front", "foot to head")

Range = Annotated[list[float], Len(2, 2)]


class Usual(TypedDict):
    """The ends of what the training cases of a run look like."""

    cases: int
    directions: list[Annotated[int, Ge(0), Lt(3)]]
    """Canonical axes (R, A, S) that slices lie along; none for whole volumes."""
    between: Range | None
    """Distance of slices, mm; null where no case has two."""
    spacing: Annotated[list[Range], MinLen(2)]
    """Of the spatial axes of a frame before it is resampled, mm."""
    extent: Annotated[list[Range], MinLen(2)]
    """Of a frame along these axes, mm."""
    grey: Annotated[list[Range], MinLen(1)]
    """Of each channel: (median - minimum) / (99th percentile - minimum)."""


def usual_scans(cases: Sequence[Mapping[str, Any]]) -> Usual:
    """The ranges over training cases.

    Args:
        cases: records of the manifest; at least one.
    """
    between = [case["native_spacing"][case["slice_axis"]] for case in cases if _has_slices(case)]
    return Usual(
        cases=len(cases),
        directions=sorted({_order(case)[0] for case in cases if case["slice_axis"] is not None}),
        between=_range(between) if between else None,
        spacing=_ranges(_spacing(case) for case in cases),
        extent=_ranges(_extent(case) for case in cases),
        grey=_ranges(_grey(case) for case in cases),
    )


def unlike(scan: Mapping[str, Any], usual: Usual, channels: Sequence[str]) -> list[str]:
    """What about a scan is beyond the training cases by more than a tenth, a line each.

    Args:
        scan: ``shape``, ``native_spacing``, ``orientation``, ``slice_axis`` and ``intensity`` as
            in a record of the manifest.
        usual: of the training cases.
        channels: their names.
    """
    return list(_differences(scan, usual, channels))


def _differences(scan: Mapping[str, Any], usual: Usual, channels: Sequence[str]) -> Iterator[str]:
    order, axis = _order(scan), scan["slice_axis"]
    if axis is not None and order[0] not in usual["directions"]:
        known = " or ".join(_AXES[direction] for direction in usual["directions"])
        yield f"slices follow one another from {_AXES[order[0]]}, {known} in training"
    if _has_slices(scan) and usual["between"] is not None:
        yield from _beyond("slices {} mm apart", scan["native_spacing"][axis], usual["between"])
    for name, value, ends in zip(
        order[-len(usual["spacing"]) :], _spacing(scan), usual["spacing"], strict=False
    ):
        yield from _beyond(f"voxels of {{}} mm from {_AXES[name]}", value, ends)
    for name, value, ends in zip(
        order[-len(usual["extent"]) :], _extent(scan), usual["extent"], strict=False
    ):
        yield from _beyond(f"an extent of {{}} mm from {_AXES[name]}", value, ends)
    for name, value, ends in zip(channels, _grey(scan), usual["grey"], strict=False):
        grey = f"a median of {{}} % of the grey range of {name}"
        yield from _beyond(grey, 100 * value, [100 * end for end in ends])


def _beyond(text: str, value: float, ends: Sequence[float]) -> Iterator[str]:
    low, high = ends
    if not low / _SLACK <= value <= high * _SLACK:
        span = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
        yield f"{text.format(f'{value:.3g}')}, {span} in training"


def _order(scan: Mapping[str, Any]) -> list[int]:
    """The canonical axis of each axis of the frames, that of the slices first."""
    first = scan["slice_axis"]
    canonical = ["RLAPSI".index(mark) // 2 for mark in scan["orientation"]]
    if first is None:
        return [0, 1, 2]
    return [canonical[first], *sorted(a for i, a in enumerate(canonical) if i != first)]


def _in_frames(scan: Mapping[str, Any], values: Sequence[float]) -> list[float]:
    """Values of the file's axes, in the order of the frames' spatial axes."""
    canonical = ["RLAPSI".index(mark) // 2 for mark in scan["orientation"]]
    by_axis = dict(zip(canonical, values, strict=True))
    order = _order(scan)
    return [float(by_axis[a]) for a in (order if scan["slice_axis"] is None else order[1:])]


def _has_slices(scan: Mapping[str, Any]) -> bool:
    axis = scan["slice_axis"]
    return axis is not None and scan["shape"][axis] > 1


def _spacing(scan: Mapping[str, Any]) -> list[float]:
    return _in_frames(scan, scan["native_spacing"])


def _extent(scan: Mapping[str, Any]) -> list[float]:
    sizes = zip(scan["shape"], scan["native_spacing"], strict=True)
    return _in_frames(scan, [voxels * mm for voxels, mm in sizes])


def _grey(scan: Mapping[str, Any]) -> list[float]:
    named = scan["intensity"]
    found = []
    for low, middle, high in zip(
        named["minimum"], named["median"], named["percentile_99"], strict=True
    ):
        # An image that is dark but for a few voxels has no range.
        found.append((middle - low) / (high - low) if high > low else 0.0)
    return found


def _range(values: Iterable[float]) -> list[float]:
    values = list(values)
    return [min(values), max(values)]


def _ranges(rows: Iterable[Sequence[float]]) -> list[list[float]]:
    return [_range(column) for column in np.array(list(rows), np.float64).T.tolist()]
