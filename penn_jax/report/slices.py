"""The slices of a case as pictures to scroll through, with reference and prediction outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from contourpy import contour_generator
from jaxtyping import Float, UInt8

from penn_jax.report.html import image_uri
from penn_jax.types import IGNORE_LABEL

MOST_SLICES = 20
"""Of one case: three cases of mere noise stay below 5 MB."""


class Outline(NamedTuple):
    """The border of one class."""

    label: int
    path: str
    """The ``d`` of an SVG path, in voxels."""


class Picture(NamedTuple):
    """One slice."""

    number: int
    """Counted from 1."""
    image: str
    """Data URI."""
    reference: list[Outline]
    prediction: list[Outline]


class Views(NamedTuple):
    """The slices of one case."""

    case: str
    columns: int
    rows: int
    spacing: tuple[float, float]
    """Of columns and rows, mm."""
    slices: int
    """That the case has; not all need be shown."""
    pictures: list[Picture]
    start: int
    """Which picture is shown first: the one with the most foreground."""


def views(
    case: str,
    image: Float[np.ndarray, "F *spatial"],
    reference: UInt8[np.ndarray, "F *spatial"],
    prediction: UInt8[np.ndarray, "F *spatial"],
    spacing: Sequence[float],
) -> Views:
    """Choose and draw the slices of a case: all, or 20 over the extent of its foreground.

    Frames have axes (R, A, S) less the one they are cut along; they are drawn head or front up,
    the right or front side on the left, as radiologists read them.

    Args:
        case: its name.
        image: one channel of the prepared frames; of a 3-D case the one frame is sliced along its
            coarsest axis.
        reference: classes taken as true.
        prediction: predicted classes.
        spacing: of the frames' spatial axes, mm.
    """
    stacks = [image, reference, prediction]
    if len(spacing) == 3:
        axis = max(range(3), key=lambda a: (spacing[a], a))
        stacks = [np.moveaxis(stack[0], axis, 0) for stack in stacks]
        spacing = [mm for a, mm in enumerate(spacing) if a != axis]
    image, reference, prediction = (stack.swapaxes(1, 2)[:, ::-1, ::-1] for stack in stacks)
    outlined = reference if _is_foreground(reference).any() else prediction
    area = _is_foreground(outlined).sum(axis=(1, 2))
    chosen = _choose(area)
    low, high = np.percentile(image, (1, 99.5))
    grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    pictures = [
        Picture(
            int(number) + 1,
            image_uri(np.rint(255 * grey[number]).astype(np.uint8)),
            _outlines(reference[number]),
            _outlines(prediction[number]),
        )
        for number in chosen
    ]
    rows, columns = image.shape[1:]
    start = int(np.argmax(area[chosen]))
    across, down = float(spacing[0]), float(spacing[1])
    return Views(case, columns, rows, (across, down), len(image), pictures, start)


def _choose(area: np.ndarray) -> np.ndarray:
    """Numbers of the slices to show."""
    if len(area) <= MOST_SLICES:
        return np.arange(len(area))
    some = np.flatnonzero(area)
    first, last = (some[0], some[-1]) if len(some) else (0, len(area) - 1)
    # One more on either side, where the structure has ended.
    first, last = max(0, first - 1), min(len(area) - 1, last + 1)
    return np.unique(np.linspace(first, last, MOST_SLICES).round().astype(int))


def _is_foreground(labels: np.ndarray) -> np.ndarray:
    return (labels > 0) & (labels != IGNORE_LABEL)


def _outlines(mask: UInt8[np.ndarray, "rows columns"]) -> list[Outline]:
    padded = np.pad(mask, 1)  # so that a mask at the border is closed
    return [
        Outline(int(label), _path(padded == label))
        for label in np.unique(mask[_is_foreground(mask)])
    ]


def _path(mask: np.ndarray) -> str:
    """The border of a padded mask, halfway between voxel centres."""
    lines = contour_generator(z=mask.astype(np.float64)).lines(0.5)
    # A voxel's centre lies half a voxel inside it; the padding shifted all by a whole one.
    return "".join(
        "M" + "L".join(f"{x:g} {y:g}" for x, y in np.asarray(line) - 0.5) + "Z" for line in lines
    )
