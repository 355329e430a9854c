"""``penn predict``: scans in, masks out."""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections import Counter
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
_MASK, _PROBABILITIES = ".nii.gz", "_probabilities.nii.gz"


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

    Returns:
        The masks written.

    Raises:
        InputError: a model or a scan cannot be used. Masks already written stay; none is half
            written.
        OSError: a file cannot be written; the disk has no room for the probabilities.
    """
    folders, inputs = _models_and_inputs(paths)
    models = load_models(folders)
    config, card = models[0].config, models[0].card
    settings = parse_section(
        PredictConfig, {**to_json(config.predict), **(changes or {})}, "command line"
    )
    cases = find_scans(inputs, len(card["channels"]))
    _check_targets(cases, out, probabilities, overwrite)
    forward, plan = ensemble(models, settings, engine)
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)

    def start_writing(name: str, case: Case) -> Future[Path]:
        with _probability_file(case, len(card["labels"]), out, probabilities) as likely:
            mask = predict_case(case, forward, plan, likely)
            if likely is not None:
                write_probabilities(_target(out, name, _PROBABILITIES), likely, case.scan)
        return writer.submit(finish, _target(out, name, _MASK), mask, case.scan)

    def finish(path: Path, mask: UInt8[np.ndarray, "X Y Z"], scan: Volume) -> Path:
        drop_small_components(mask, scan.spacing, settings.smallest_component)
        write_mask(path, np.asarray(card["label_values"], np.uint8)[mask], scan)
        return path

    written: list[Path] = []
    failed: list[InputError] = []
    behind: Future[Path] | None = None
    with ThreadPoolExecutor(1) as writer, bar("predicting", progress) as shown:
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


def _target(out: Path, name: str, ending: str) -> Path:
    return out / f"{name}{ending}"


def _check_targets(
    cases: Mapping[str, Sequence[Path]], out: Path, probabilities: bool, overwrite: bool
) -> None:
    scans = {path.resolve() for paths in cases.values() for path in paths}
    endings = (_MASK, _PROBABILITIES) if probabilities else (_MASK,)
    targets = [_target(out, name, ending) for name in cases for ending in endings]
    twice = {target for target, count in Counter(targets).items() if count > 1}
    for target in targets:
        if target.resolve() in scans:
            raise InputError(
                out, f"would overwrite the scan {target}", "another folder", "set --out"
            )
        if target in twice:
            raise InputError(
                target,
                "would be the mask of one scan and the probabilities of another",
                "scans of other names",
                "rename one, or predict them into folders of their own",
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


@contextmanager
def _probability_file(
    case: Case, classes: int, out: Path, wanted: bool
) -> Iterator[Float32[np.ndarray, "X Y Z K"] | None]:
    """Room for the probabilities of a whole scan: on disk, for they may exceed the memory.

    Raises:
        OSError: the disk has no room.
    """
    if not wanted:
        yield None
        return
    with tempfile.TemporaryFile(dir=out) as file:
        # In the order of a NIfTI file: the first axis fastest.
        shape = (*case.grid.native_shape, classes)
        if hasattr(os, "posix_fallocate"):
            # A full disk would end a process that writes to a mapped file with holes, unheard.
            try:
                os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(out)) from error
        yield np.memmap(file, np.float32, "w+", shape=shape, order="F")


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
