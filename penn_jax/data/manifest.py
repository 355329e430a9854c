"""``manifest.json``: every key of a prepared store's description, and the strict reader of it.

The reader believes nothing: types, ranges, unknown keys, and whether the parts agree with one
another. What it returns needs no further check.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt, MinLen
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError, with_config
from pydantic.functional_validators import AfterValidator
from pydantic_core import PydanticCustomError

# pydantic cannot take typing's own before Python 3.12.
from typing_extensions import TypedDict

from penn_jax.config import PrepareConfig, from_json
from penn_jax.types import IGNORE_LABEL, InputError

FORMAT = 2
EXPECTED = f"a prepared store of format {FORMAT}"

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def is_case_name(name: str) -> bool:
    """Whether a case of this name can have a folder of its own inside the store."""
    outside = name in ("", ".", "..") or any(mark in "/\\\0" for mark in name)
    # Lone surrogates are how Python shows a file name that is not UTF-8.
    return not outside and not any("\ud800" <= mark <= "\udfff" for mark in name)


def _case_name(name: str) -> str:
    if not is_case_name(name):
        raise PydanticCustomError("case_name", "cannot name a case")
    return name


def _prepare_options(values: dict[str, Any]) -> dict[str, Any]:
    try:
        from_json(PrepareConfig, values)
    except ValidationError as error:
        raise PydanticCustomError("options", "are not options of penn prepare") from error
    return values


CaseName = Annotated[str, AfterValidator(_case_name)]
Size = Annotated[int, Gt(0), Lt(2**31)]
Count = Annotated[int, Ge(0), Lt(2**63)]
Millimetres = Annotated[float, Gt(0)]
Row = Annotated[list[float], Len(4, 4)]


def _hexadecimal(digits: int) -> StringConstraints:
    return StringConstraints(pattern=f"^[0-9a-f]{{{digits}}}$")


@with_config(_STRICT)
class Source(TypedDict):
    """A file that a case was made from."""

    path: Annotated[str, MinLen(1)]
    """Relative to the raw folder, with forward slashes."""
    sha256: Annotated[str, _hexadecimal(64)]
    """Of the file as it lies, still compressed."""


@with_config(_STRICT)
class Intensity(TypedDict):
    """What the voxels of a scan are worth in the file's own unit, one value a channel."""

    minimum: list[float]
    median: list[float]
    percentile_99: list[float]
    maximum: list[float]


@with_config(_STRICT)
class CaseRecord(TypedDict):
    """What is known of one case."""

    subject: Annotated[str, MinLen(1)]
    """Cases of one subject belong on one side of a split."""
    part: Literal["train", "test"]
    """``test`` cases are in no split."""
    labelled: bool
    fingerprint: Annotated[str, _hexadecimal(64)]
    """:func:`penn_jax.data.fingerprint.fingerprint`: the same for a scan however it is stored."""
    shape: Annotated[list[Size], Len(3, 3)]
    """Voxels along each axis of the file."""
    native_spacing: Annotated[list[Millimetres], Len(3, 3)]
    """Distance of the voxels along each axis of the file, mm."""
    orientation: Annotated[str, StringConstraints(pattern="^[RLAPSI]{3}$")]
    """Where each axis of the file points: ``RAS`` is right, anterior, superior."""
    affine: Annotated[list[Row], Len(4, 4)]
    """From voxel of the file to mm, row by row."""
    slice_axis: Annotated[int, Ge(0), Lt(3)] | None
    """Axis of the file that the frames lie along; null in a 3-D store."""
    frames_shape: Annotated[list[Size], Len(4, 5)]
    """(F, *spatial, C) of the prepared image."""
    intensity: Intensity
    voxels: dict[str, Count]
    """Prepared voxels of each class, by its number as text, and of 255 (ignored) where there are
    any; empty for an unlabelled case."""
    sources: Annotated[list[Source], MinLen(1)]
    """A file for each channel, then the label's."""


@with_config(_STRICT)
class Split(TypedDict):
    """Names of the cases on either side; no case is on both."""

    train: list[str]
    validation: list[str]


@with_config(_STRICT)
class Manifest(TypedDict):
    """The whole of ``manifest.json``."""

    format: Annotated[int, Ge(FORMAT), Le(FORMAT)]
    """Raised whenever a store written before can no longer be read."""
    config: Annotated[dict[str, Any], AfterValidator(_prepare_options)]
    """The options of ``penn prepare``: :class:`penn_jax.config.PrepareConfig`."""
    config_hash: Annotated[str, _hexadecimal(16)]
    """:func:`penn_jax.config.config_hash` of them."""
    dimensions: Literal[2, 3]
    """Spatial axes of a frame."""
    spacing: list[Millimetres] | None
    """Of the frames' spatial axes, mm; null where each case keeps its own."""
    channels: Annotated[list[str], MinLen(1)]
    """Names of the channels."""
    labels: Annotated[dict[str, Annotated[int, Ge(0), Lt(IGNORE_LABEL)]], MinLen(1)]
    """Class of each label name: 0 is background, no number is left out."""
    label_values: list[Annotated[int, Ge(0), Lt(256)]]
    """What each class is called in the label files, and in the masks that are predicted."""
    splits: Annotated[list[Split], MinLen(1)]
    data_hash: Annotated[str, _hexadecimal(64)]
    """SHA-256 over names and hashes of all scans, labels and JSON files of the raw folder."""
    cases: Annotated[dict[CaseName, CaseRecord], MinLen(1)]
    findings: list[str]
    """Everything odd about the cases, a line each."""


class _Version(TypedDict):
    format: Any


_VERSION, _MANIFEST = TypeAdapter(_Version), TypeAdapter(Manifest)


def read_manifest(content: bytes, source: str) -> Manifest:
    """Check the bytes of a ``manifest.json`` to the last key.

    Args:
        content: the file, UTF-8.
        source: what to call it in an error.

    Raises:
        InputError: another format, or the first mistake found.
    """
    remedy = "delete the store and prepare again"
    try:
        if (version := _VERSION.validate_json(content)["format"]) != FORMAT:
            raise InputError(source, f"is of format {version!r:.20}", EXPECTED, "run penn prepare")
        manifest = _MANIFEST.validate_json(content)
    except ValidationError as error:
        # Without the inputs: each would be a copy of a part of the file.
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        wrong = f"is damaged ({f'{where}: ' if where else ''}{first['msg']})"
        raise InputError(source, wrong, EXPECTED, remedy) from error
    if wrong := next(_contradictions(manifest), None):
        raise InputError(source, f"is damaged ({wrong})", EXPECTED, remedy)
    return manifest


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What is well-formed but cannot be true, the store as a whole first."""
    dimensions, numbers = manifest["dimensions"], sorted(manifest["labels"].values())
    if numbers != list(range(len(numbers))):
        yield f"labels: the classes are {numbers}, not 0 to {len(numbers) - 1}"
    values = manifest["label_values"]
    if len(values) != len(numbers) or len(set(values)) < len(values) or values[0] != 0:
        yield f"label_values: not 0 and another value for each of {len(numbers)} labels"
    if manifest["config"].get("dimensions", dimensions) != dimensions:
        yield f"dimensions: {dimensions} is not what config says"
    if manifest["spacing"] is not None and len(manifest["spacing"]) != dimensions:
        yield f"spacing: not {dimensions} values"
    for number, split in enumerate(manifest["splits"]):
        named = [*split["train"], *split["validation"]]
        for name in named:
            if name not in manifest["cases"]:
                yield f"splits.{number}: {name} is not among the cases"
            elif manifest["cases"][name]["part"] == "test":
                yield f"splits.{number}: {name} is for testing"
        if len(set(named)) < len(named):
            yield f"splits.{number}: a case is there twice"
    for name, case in manifest["cases"].items():
        for wrong in _contradictions_of(case, manifest):
            yield f"cases.{name}.{wrong}"


def _contradictions_of(case: CaseRecord, manifest: Manifest) -> Iterator[str]:
    channels, dimensions = len(manifest["channels"]), manifest["dimensions"]
    frames, *spatial, last = case["frames_shape"]
    if len(spatial) != dimensions or last != channels:
        yield f"frames_shape: not F, {dimensions} axes and {channels} channels"
    axis = case["slice_axis"]
    if (axis is None) != (dimensions == 3):
        yield f"slice_axis: {axis} in a {dimensions}-D store"
    if frames != (1 if axis is None else case["shape"][axis]):
        yield f"frames_shape: {frames} frames of a scan of {case['shape']} voxels"
    if {"RLAPSI".index(mark) // 2 for mark in case["orientation"]} != {0, 1, 2}:
        yield "orientation: two axes point the same way"
    for name, each in case["intensity"].items():
        if len(each) != channels:  # type: ignore[arg-type]
            yield f"intensity.{name}: not a value for each of {channels} channels"
    counts = case["voxels"]
    if not case["labelled"]:
        if counts:
            yield "voxels: counts of an unlabelled case"
        return
    if counts.keys() - {str(IGNORE_LABEL)} != {str(n) for n in manifest["labels"].values()}:
        yield "voxels: not a count for each class"
    if sum(counts.values()) != frames * math.prod(spatial):
        yield "voxels: the counts do not add up to the voxels of the frames"
