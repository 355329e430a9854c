"""``penn predict``: scans in, masks out."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from penn_jax.components import drop_small_components
from penn_jax.config import PredictConfig, to_json
from penn_jax.data.scans import find_scans
from penn_jax.data.volume import Volume, read_geometry, write_mask, write_probabilities
from penn_jax.engine import Engine, ensemble, load_models
from penn_jax.predict.case import Case, predict_case, read_case
from penn_jax.progress import bar
from penn_jax.run import ModelCard
from penn_jax.settings import parse_section
from penn_jax.types import InputError

_READ_AHEAD = 1 << 25
"""Voxels of a scan that is read while the one before is predicted; larger ones wait their turn."""


def predict(
    paths: Sequence[Path],
    out: Path,
    changes: Mapping[str, Any] | None = None,
    probabilities: bool = False,
    overwrite: bool = False,
    engine: Engine = "auto",
    progress: bool = True,
) -> list[Path]:
    """Write ``<case>.nii.gz`` for every scan: uint8, same shape, affine and geometry.

    One scan is read ahead and one written behind while a third is predicted. A scan that cannot be
    used does not keep the others from being predicted; it is reported at the end.

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

    Returns:
        The masks written.

    Raises:
        InputError: a model or a scan cannot be used. Masks already written stay; none is half
            written.
    """
    folders, inputs = _models_and_inputs(paths)
    models = load_models(folders)
    config, card = models[0].config, models[0].card
    settings = parse_section(
        PredictConfig, {**to_json(config.predict), **(changes or {})}, "command line"
    )
    cases = find_scans(inputs, len(card["channels"]))
    _check_targets(cases, out, overwrite)
    forward, plan = ensemble(models, settings, engine)
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)

    def work(case: Case, name: str) -> Future:
        with _probability_file(case, len(card["labels"]), out, probabilities) as likely:
            mask = predict_case(case, forward, plan, likely)
            drop_small_components(mask, case.scan.spacing, settings.smallest_component)
            if likely is not None:
                write_probabilities(out / f"{name}_probabilities.nii.gz", likely, case.scan)
        return writer.submit(_write, out / f"{name}.nii.gz", mask, case.scan, card["label_values"])

    written: list[Path] = []
    failed: list[InputError] = []
    behind: Future | None = None
    with ThreadPoolExecutor(1) as writer, bar("predicting", progress) as shown:
        for number, (name, case) in enumerate(_read_all(cases, card)):
            shown.update(number / len(cases), name)
            if isinstance(case, InputError):
                failed.append(case)
                continue
            ahead = work(case, name)
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
    return written


# ---- what is asked -----------------------------------------------------------------------------


def _models_and_inputs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    first, *others = paths
    models, inputs = [first], []
    for path in others:
        (models if (path / "config.json").is_file() else inputs).append(path)
    if not inputs:
        raise InputError(
            "penn predict", "no scans", "a model, then scans or folders", "name the scans"
        )
    return models, inputs


def _check_targets(cases: Mapping[str, Sequence[Path]], out: Path, overwrite: bool) -> None:
    for name, scans in cases.items():
        target = out / f"{name}.nii.gz"
        if target.resolve() in [path.resolve() for path in scans]:
            raise InputError(
                out, f"would overwrite the scan {scans[0]}", "another folder", "set --out"
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
            return error

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


@contextmanager
def _probability_file(
    case: Case, classes: int, out: Path, wanted: bool
) -> Iterator[Float32[np.ndarray, "X Y Z K"] | None]:
    """Room for the probabilities of a whole scan: on disk, for they may exceed the memory."""
    if not wanted:
        yield None
        return
    with tempfile.TemporaryFile(dir=out) as file:
        # In the order of a NIfTI file: the first axis fastest.
        shape = (*case.grid.native_shape, classes)
        yield np.memmap(file, np.float32, "w+", shape=shape, order="F")


def _write(
    path: Path, mask: UInt8[np.ndarray, "X Y Z"], scan: Volume, values: Sequence[int]
) -> Path:
    write_mask(path, np.asarray(values, np.uint8)[mask], scan)
    return path


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
