"""``penn predict``: scans in, masks out."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from penn_jax.components import drop_small_components
from penn_jax.config import PredictConfig, to_json
from penn_jax.data.dicom_seg import write_segmentation
from penn_jax.data.remote import Place, Remote
from penn_jax.data.scans import find_scans
from penn_jax.data.volume import (
    Volume,
    read_geometry,
    write_map,
    write_mask,
    write_probabilities,
)
from penn_jax.engine import Engine, engine_of, ensemble, load_models
from penn_jax.predict.case import Case, predict_case, read_case
from penn_jax.predict.room import room
from penn_jax.predictions import Comparison, Origin, compare, describe, recorded
from penn_jax.progress import bar, say
from penn_jax.run import ModelCard
from penn_jax.settings import parse_section
from penn_jax.types import InputError

_READ_AHEAD = 1 << 25
"""Voxels of a scan that is read while the one before is predicted; larger ones wait their turn."""
_MASK, _PROBABILITIES, _ENTROPY = ".nii.gz", "_probabilities.nii.gz", "_entropy.nii.gz"
_SEGMENTATION = ".dcm"


def predict(
    paths: Sequence[Place],
    out: Path,
    changes: Mapping[str, Any] | None = None,
    probabilities: bool = False,
    overwrite: bool = False,
    engine: Engine = "auto",
    progress: bool = True,
    dicom_seg: bool = False,
    uncertainty: bool = False,
) -> list[Path]:
    """Write ``<case>.nii.gz`` for every scan: uint8, same shape, affine and geometry.

    What can be told of the masks without a reference is added to ``predictions.json`` beside them.

    While a scan is predicted the next one is read, and the mask of the one before is cleaned and
    written; probabilities, which may exceed the memory, are written before the next scan. A scan
    that cannot be used does not keep the others from being predicted; it is reported at the end.

    Args:
        paths: one or more models (runs of ``penn train``), whose probabilities are averaged; then
            scans, or folders of scans; several channels are told by ``_0000``, ``_0001``, …. The
            first path is a model, and so is every further folder that holds a ``config.json``.
        out: folder of the masks; made where it is missing.
        changes: values of ``PredictConfig`` that replace those of the first model's config.
        probabilities: also write ``<case>_probabilities.nii.gz``, float32 (X, Y, Z, K).
        overwrite: replace masks that are there already.
        engine: what evaluates the network; ``auto`` is ONNX Runtime on a CPU where it is
            installed, and jax elsewhere.
        progress: show a progress line where stderr is a terminal.
        dicom_seg: also write ``<case>.dcm``, a DICOM SEG; every scan must be a DICOM series.
        uncertainty: also write ``<case>_entropy.nii.gz``, float32 (X, Y, Z) of 0 to 1.

    Returns:
        The masks written.

    Raises:
        InputError: a model or a scan cannot be used. Masks already written stay; none is half
            written.
        OSError: a file cannot be written; the disk has no room for the probabilities or entropy.
    """
    folders, inputs = _models_and_inputs(paths)
    models = load_models(folders)
    config, card = models[0].config, models[0].card
    settings = parse_section(
        PredictConfig, {**to_json(config.predict), **(changes or {})}, "command line"
    )
    cases = find_scans(inputs, len(card["channels"]))
    more = {_PROBABILITIES: probabilities, _ENTROPY: uncertainty}
    _check_targets(cases, out, [ending for ending, wanted in more.items() if wanted], overwrite)
    if dicom_seg:
        _check_segmentations(cases, out, overwrite)
    forward, plan = ensemble(models, settings, engine)
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    origin = Origin(
        models=[str(folder) for folder in folders],
        engine=", ".join(sorted({engine_of(model, engine) for model in models})),
        mirror=settings.mirror,
    )

    def start_writing(name: str, case: Case) -> Future[Path]:
        shape = case.grid.native_shape
        with (
            room((*shape, len(card["labels"])), out, probabilities) as likely,
            room(shape, out, uncertainty) as unsure,
        ):
            mask, sums = predict_case(case, forward, plan, likely, unsure)
            if likely is not None:
                write_probabilities(_target(out, name, _PROBABILITIES), likely, case.scan)
            if unsure is not None:
                write_map(_target(out, name, _ENTROPY), unsure, case.scan)
        return writer.submit(finish, name, mask, sums, case.scan, compare(case, card))

    def finish(
        name: str,
        mask: UInt8[np.ndarray, "X Y Z"],
        sums: Float64[np.ndarray, "3 foreground"],
        scan: Volume,
        unlike: Comparison,
    ) -> Path:
        path = _target(out, name, _MASK)
        drop_small_components(mask, scan.spacing, settings.smallest_component)
        write_mask(path, np.asarray(card["label_values"], np.uint8)[mask], scan)
        found[name] = describe(mask, sums, scan.spacing, card, unlike, cases[name], origin)
        if dicom_seg:
            segments = sorted(card["labels"], key=card["labels"].__getitem__)[1:]
            try:
                write_segmentation(
                    _target(out, name, _SEGMENTATION), mask, segments, scan.path, folders[0].name
                )
            except InputError as error:  # the mask is there, and the others go on
                failed.append(error)
        return path

    written: list[Path] = []
    failed: list[InputError] = []
    behind: Future[Path] | None = None
    with (
        recorded(out) as found,
        ThreadPoolExecutor(1) as writer,
        bar("predicting", progress) as shown,
    ):
        # Not through enumerate or zip, which keep their last tuple, and with it the scan.
        for name, case in _read_all(cases, card):
            done = len(written) + len(failed) + (behind is not None)
            shown.update(done / len(cases), name)
            if isinstance(case, InputError):
                failed.append(case)
                continue
            try:
                ahead = start_writing(name, case)
            except InputError as error:
                failed.append(_of_scan(error, cases[name][0]))
                continue
            finally:
                del case  # a large scan must not stay while the next is read
            if behind is not None:
                written.append(behind.result())
            behind = ahead
        if behind is not None:
            written.append(behind.result())
    if failed:
        if made and not written:
            out.rmdir()
        raise _all_in_one(failed)
    if warned := sum(bool(case["warnings"]) for case in found.values()):
        say(f"warnings for {warned} of {len(found)} scans: penn report {out}", progress)
    return written


# ---- what is asked -----------------------------------------------------------------------------


def _models_and_inputs(paths: Sequence[Place]) -> tuple[list[Place], list[Path]]:
    first, *others = paths
    models: list[Place] = [first]
    inputs: list[Path] = []
    for path in others:
        if (path / "config.json").is_file():
            models.append(path)
        elif isinstance(path, Remote):
            raise InputError(path, "is no model", "scans on a disk", "copy the scans first")
        else:
            inputs.append(path)
    if not inputs:
        raise InputError(
            "penn predict", "no scans", "a model, then scans or folders", "name the scans"
        )
    return models, inputs


def _target(out: Path, name: str, ending: str) -> Path:
    return out / f"{name}{ending}"


def _check_targets(
    cases: Mapping[str, Sequence[Path]], out: Path, more: Sequence[str], overwrite: bool
) -> None:
    scans = {path.resolve() for paths in cases.values() for path in paths}
    if out.resolve() in scans:
        raise InputError(out, "is the folder of the series", "another one", "set --out")
    targets = [_target(out, name, ending) for name in cases for ending in (_MASK, *more)]
    twice = {target for target, count in Counter(targets).items() if count > 1}
    for target in targets:
        if target.resolve() in scans:
            raise InputError(
                out, f"would overwrite the scan {target}", "another folder", "set --out"
            )
        if target in twice:
            other = "entropy" if target.name.endswith(_ENTROPY) else "probabilities"
            raise InputError(
                target,
                f"would be the mask of one scan and the {other} of another",
                "scans of other names",
                "rename one, or predict them into folders of their own",
            )
        if target.exists() and not overwrite:
            raise InputError(
                target, "exists", "a new file", "add --overwrite or choose another --out"
            )


def _check_segmentations(cases: Mapping[str, Sequence[Path]], out: Path, overwrite: bool) -> None:
    for name, (first, *_) in cases.items():
        target = _target(out, name, _SEGMENTATION)
        if not first.is_dir():
            raise InputError(
                first,
                "is no DICOM series, whose slices a DICOM SEG refers to",
                "folders of DICOM files",
                "leave out --dicom-seg, or give the series it was made of",
            )
        if target.exists() and not overwrite:
            raise InputError(
                target, "exists", "a new file", "add --overwrite or choose another --out"
            )


# ---- scans in, masks out -----------------------------------------------------------------------


def _read_all(
    cases: Mapping[str, Sequence[Path]], card: ModelCard
) -> Iterator[tuple[str, Case | InputError]]:
    """Read the cases in order, the next one in the background; what is wrong takes its place."""

    def read(paths: Sequence[Path]) -> Case | InputError:
        try:
            return read_case(paths, card["dimensions"], card["spacing"])
        except InputError as error:
            return copy.copy(error)  # without its traceback, which holds what was read

    with ThreadPoolExecutor(1) as reader:
        names = list(cases)
        ahead: Future | None = None
        for number, name in enumerate(names):
            case = read(cases[name]) if ahead is None else ahead.result()
            ahead = None
            if number + 1 < len(names) and _is_small(following := cases[names[number + 1]]):
                ahead = reader.submit(read, following)
            yield name, case
            del case


def _is_small(paths: Sequence[Path]) -> bool:
    try:
        return math.prod(read_geometry(paths[0]).array.shape) * len(paths) <= _READ_AHEAD
    except InputError:
        return False  # told when its turn comes


def _of_scan(error: InputError, scan: Path) -> InputError:
    return InputError(scan, f"{error.source}: {error.wrong}", error.expected, error.remedy)


def _all_in_one(errors: Sequence[InputError]) -> InputError:
    first, *others = errors
    if not others:
        return first
    more = ", ".join(str(error.source) for error in others[:5]) + ("…" if others[5:] else "")
    return InputError(
        first.source,
        first.wrong,
        first.expected,
        f"{first.remedy}; {len(others)} more could not be used: {more}",
    )
