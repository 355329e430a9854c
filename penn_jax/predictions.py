"""``predictions.json``: what can be told of each mask of ``penn predict`` without a reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Le, MinLen
from jaxtyping import Float64, UInt8
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from penn_jax.components import count_components
from penn_jax.config import write_json
from penn_jax.data.usual import unlike
from penn_jax.predict.case import Case
from penn_jax.predict.certainty import expected_dice, inside_probability
from penn_jax.run import ModelCard
from penn_jax.types import InputError

FILE = "predictions.json"
"""Beside the masks."""
NOTHING = "nothing was found"

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Share = Annotated[float, Ge(0), Le(1)]


@with_config(_STRICT)
class Found(TypedDict):
    """What a mask holds of one class."""

    value: Annotated[int, Ge(0), Le(255)]
    """What the class is called in the mask."""
    volume: Annotated[float, Ge(0)]
    """mm³."""
    components: Annotated[int, Ge(0)]
    """Connected parts (26 neighbours): lesions, where the class is one."""
    confidence: Share | None
    """Mean probability inside the class as first predicted; null where there is none."""
    expected_dice: Share | None
    """:func:`penn_jax.predict.certainty.expected_dice` of it."""


@with_config(_STRICT)
class Origin(TypedDict):
    """What made a mask."""

    models: Annotated[list[str], MinLen(1)]
    engine: str
    mirror: bool
    """Whether mirrorings were averaged."""


@with_config(_STRICT)
class Prediction(Origin):
    """One mask."""

    scan: Annotated[list[str], MinLen(1)]
    """A file for each channel, absolute."""
    confidence: Share
    """The mean over the classes found; 0 where nothing is."""
    classes: dict[str, Found]
    """Of each foreground class."""
    training_cases: Annotated[int, Ge(0)]
    """That the scan was compared with; 0 where the model does not say what they look like."""
    warnings: list[str]


class Comparison(NamedTuple):
    """A scan against the training cases."""

    cases: int
    """How many; 0 where the model does not say what they look like."""
    unlike: list[str]


@with_config(_STRICT)
class _File(TypedDict):
    format: Literal[1]
    cases: dict[str, Prediction]


_FILE = TypeAdapter(_File)


def describe(
    mask: UInt8[np.ndarray, "X Y Z"],
    sums: Float64[np.ndarray, "3 foreground"],
    spacing: Sequence[float],
    card: ModelCard,
    comparison: Comparison,
    paths: Sequence[Path],
    origin: Origin,
) -> Prediction:
    """What can be told of a mask.

    Args:
        mask: classes, as they are written.
        sums: from ``predict_case``, of the classes as first predicted.
        spacing: of the voxels, mm.
        card: of the model.
        comparison: of the scan.
        paths: of the scan.
        origin: of the mask.
    """
    voxels, components = count_components(mask, len(card["labels"]))
    volumes = voxels * math.prod(spacing)
    probabilities, dice = inside_probability(sums), expected_dice(sums)
    classes = {
        name: Found(
            value=card["label_values"][number],
            volume=round(float(volumes[number - 1]), 3),
            components=int(components[number - 1]),
            confidence=_share(probabilities[number - 1]),
            expected_dice=_share(dice[number - 1]),
        )
        for name, number in card["labels"].items()
        if number > 0
    }
    known = [found["confidence"] for found in classes.values() if found["confidence"] is not None]
    return Prediction(
        **origin,
        scan=[str(path.resolve()) for path in paths],
        confidence=sum(known) / len(known) if known else 0.0,
        classes=classes,
        training_cases=comparison.cases,
        warnings=[*comparison.unlike, *([] if voxels.any() else [NOTHING])],
    )


def _share(value: float) -> float | None:
    # Six digits: the rest depends on the order of summation.
    return None if math.isnan(value) else round(min(1.0, float(value)), 6)


def compare(case: Case, card: ModelCard) -> Comparison:
    """What about a scan is unlike the training cases, as far as the model tells of them."""
    if "usual" not in card:
        return Comparison(0, [])
    scan = {
        "shape": case.grid.native_shape,
        "native_spacing": case.scan.spacing,
        "orientation": case.scan.orientation,
        "slice_axis": case.grid.axes[0] if case.grid.dimensions == 2 else None,
        "intensity": case.intensity,
    }
    return Comparison(card["usual"]["cases"], unlike(scan, card["usual"], card["channels"]))


@contextmanager
def recorded(folder: Path) -> Iterator[dict[str, Prediction]]:
    """Takes what is told of masks and adds it to the file, whatever ends the work.

    Raises:
        InputError: the file there is damaged.
        OSError: it cannot be written.
    """
    known = read_predictions(folder) if (folder / FILE).exists() else {}
    found: dict[str, Prediction] = {}
    try:
        yield found
    finally:
        if found:
            write_predictions(folder, {**known, **found})


def write_predictions(folder: Path, predictions: Mapping[str, Prediction]) -> None:
    """Write the file beside the masks, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    content: dict[str, Any] = {"format": 1, "cases": dict(sorted(predictions.items()))}
    write_json(folder / FILE, content)


def read_predictions(folder: Path) -> dict[str, Prediction]:
    """What :func:`write_predictions` wrote, by case.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    path = folder / FILE
    try:
        return _FILE.validate_json(path.read_bytes())["cases"]
    except OSError as error:
        wrong, cause = "cannot be read", error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        wrong, cause = f"is damaged ({where}: {first['msg']})", error
    raise InputError(path, wrong, "what penn predict writes", "predict the scans again") from cause
