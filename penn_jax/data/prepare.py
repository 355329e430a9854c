"""Turns a raw folder into a prepared store: check, orient, slice, resample, normalise, write.

Two passes over the cases, each in a pool of processes: the first reads hashes and geometry, from
which the target spacing and the classes follow; the second prepares and writes. The store takes its
place when the manifest, its last file, is written.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from penn_jax.config import PrepareConfig, config_hash, to_json
from penn_jax.data.findings import findings, summary
from penn_jax.data.fingerprint import fingerprint
from penn_jax.data.folder import whole_folder, whole_remote
from penn_jax.data.grid import normalise, to_frames
from penn_jax.data.leaks import refuse_leaks, seeded_split
from penn_jax.data.manifest import FORMAT, Split
from penn_jax.data.pool import processes, run
from penn_jax.data.raw import RawCase, RawDataset, find_cases
from penn_jax.data.remote import Place, Remote, put_json
from penn_jax.data.store import StoreWriter
from penn_jax.data.volume import (
    check_same_grid,
    frame_grid,
    read_geometry,
    read_image,
    read_labels,
)
from penn_jax.types import IGNORE_LABEL, InputError

__all__ = ["prepare", "summary"]


@dataclass(frozen=True)
class _Survey:
    """What the first pass learns of a case."""

    sources: tuple[tuple[str, str], ...]
    """Path relative to the raw folder, and SHA-256, of each file."""
    spacing: tuple[float, ...]
    """Native distance of the frames' voxels, mm."""
    values: frozenset[int]
    """Label values, looked for only where no ``dataset.json`` gives them."""


@dataclass(frozen=True)
class _Plan:
    """What the second pass needs to know besides the case."""

    folder: Place
    dimensions: int
    spacing: tuple[float, ...] | None
    classes: dict[int, int]
    """Class of each value in the label files."""
    names: dict[str, int]
    """Class of each label name."""
    values: tuple[int, ...]
    """What each class is called in the label files; merged classes keep their own number."""


def prepare(
    raw: Path,
    out: Place,
    config: PrepareConfig,
    workers: int | None = None,
    progress: bool = False,
) -> Place:
    """Prepare a raw folder for training, whole or not at all.

    Args:
        raw: the raw folder, in one of the layouts of ``raw.find_cases``.
        out: folder of the store; missing, empty, or the same store finished before, which is then
            left as it is. In object storage the manifest, put last, makes it one.
        config: the section of options.
        workers: processes; one for each CPU at hand if None. With 1 no process is started.
        progress: show a bar where the output is a terminal.

    Returns:
        The folder of the store.

    Raises:
        InputError: something in the raw folder is wrong, ``out`` holds something else, or another
            process is preparing it.
        OSError: ``out`` cannot be written.
    """
    raw, out = Path(raw), out if isinstance(out, Remote) else Path(out).absolute()
    if isinstance(config.spacing, tuple) and len(config.spacing) != config.dimensions:
        raise InputError(
            "spacing",
            f"{len(config.spacing)} values",
            f"{config.dimensions}, one for each axis of a frame",
            "give spacing and dimensions that agree",
        )
    finished = _finished_manifest(out)
    if finished and finished["config_hash"] != config_hash(config):
        raise _occupied(out, "a store prepared with other options")
    dataset = find_cases(raw)
    with _whole(out, finished is not None) as (folder, still_ours):
        with processes(workers, len(dataset.cases)) as pool:
            survey = partial(
                _survey, root=raw, dimensions=config.dimensions, scan=not dataset.labels
            )
            surveys = run(pool, survey, dataset.cases, "checking", progress)
            data_hash = _data_hash(raw, surveys)
            if finished and finished["data_hash"] != data_hash:
                raise _occupied(out, "a store prepared from other scans")
            if finished:
                if progress:
                    print(f"{out}: already prepared, nothing to do", file=sys.stderr)
                return out
            plan = _plan(dataset, surveys, config, folder)
            write = partial(_prepare_case, plan=plan)
            records = run(pool, write, dataset.cases, "preparing", progress)
        manifest = _manifest(dataset, surveys, records, plan, config, data_hash)
        still_ours()
        put_json(folder / "manifest.json", manifest)
    return out


@contextmanager
def _whole(out: Place, finished: bool) -> Iterator[tuple[Place, Callable[[], None]]]:
    """The folder to write to, and what makes sure that it is still this process's."""

    def nothing() -> None:
        pass

    if finished:  # it may lie where nothing can be written
        yield out, nothing
    elif isinstance(out, Remote):
        with whole_remote(out, "cases", partial(print, file=sys.stderr)) as lease:
            yield out, lease.check
    else:
        with whole_folder(out) as folder:
            yield folder, nothing


def _finished_manifest(out: Place) -> dict[str, Any] | None:
    """The manifest of the store that is there, None where nothing is."""
    if isinstance(out, Remote):
        if not (out / "manifest.json").is_file():
            return None
    elif not out.exists():
        return None
    elif not out.is_dir():
        raise _occupied(out, "a file")
    elif not any(out.iterdir()):
        return None
    try:
        manifest = json.loads((out / "manifest.json").read_bytes())
        finished = {key: manifest[key] for key in ("format", "config_hash", "data_hash")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _occupied(out, "a folder that is not a prepared store") from error
    if finished["format"] != FORMAT:
        raise _occupied(out, f"a store of format {finished['format']}")
    return finished


def _occupied(out: Place, wrong: str) -> InputError:
    return InputError(
        out, f"is {wrong}", "a new folder", "choose another folder or delete this one"
    )


def _survey(case: RawCase, *, root: Path, dimensions: int, scan: bool) -> _Survey:
    sources = []
    for path in (*case.images, *([case.label] if case.label else [])):
        sources.append((path.relative_to(root).as_posix(), _sha256(path)))
    # By the headers alone, before a file is read whose header may claim anything.
    first, *others = case.images
    geometry = read_geometry(first)
    for path in (*others, *([case.label] if case.label else [])):
        check_same_grid(path, read_geometry(path), first, geometry)
    grid = frame_grid(geometry, dimensions, None)
    values = np.unique(read_labels(case.label).array).tolist() if scan and case.label else []
    return _Survey(tuple(sources), grid.spacing, frozenset(values))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            path, f"cannot be read ({error.strerror})", "a readable file", "check its permissions"
        ) from error


def _data_hash(raw: Path, surveys: Sequence[_Survey]) -> str:
    """SHA-256 over the names and hashes of all scans, labels and JSON files."""
    lines = [f"{digest} {name}\n" for survey in surveys for name, digest in survey.sources]
    for name in ("dataset.json", "splits_final.json"):
        if (raw / name).is_file():
            lines.append(f"{_sha256(raw / name)} {name}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _plan(
    dataset: RawDataset, surveys: Sequence[_Survey], config: PrepareConfig, folder: Place
) -> _Plan:
    spacing = config.spacing if isinstance(config.spacing, tuple) else None
    if config.spacing == "median":
        training = [
            survey.spacing
            for case, survey in zip(dataset.cases, surveys, strict=True)
            if case.part == "train"
        ]
        median = np.median(training or [survey.spacing for survey in surveys], axis=0)
        spacing = tuple(round(s, 6) for s in median.tolist())

    found = frozenset().union(*(survey.values for survey in surveys)) - {0}
    unnamed = {"background": 0} | {f"label {value}": value for value in sorted(found)}
    labels = dataset.labels or unnamed
    if len(labels) > IGNORE_LABEL:
        raise InputError(
            dataset.root, f"{len(labels)} labels", f"at most {IGNORE_LABEL}", "merge some labels"
        )
    # A network's classes have no gaps, whatever the values in the files.
    names, values = {name: number for number, name in enumerate(labels)}, tuple(labels.values())
    classes = {value: number for number, value in enumerate(values)}
    if config.merge_labels:
        names, values = {"background": 0, "foreground": 1}, (0, 1)
        classes = {value: min(number, 1) for value, number in classes.items()}
    if dataset.ignore is not None:
        classes[dataset.ignore] = IGNORE_LABEL
    return _Plan(folder, config.dimensions, spacing, classes, names, values)


def _prepare_case(case: RawCase, *, plan: _Plan) -> dict[str, Any]:
    """Write the arrays of a case and return its entry in the manifest."""
    image = read_image(case.images)
    grid = frame_grid(image, plan.dimensions, plan.spacing)
    labels, voxels = None, {}
    if case.label:
        annotation = read_labels(case.label)
        check_same_grid(case.label, annotation, case.images[0], image)
        labels = to_frames(_to_classes(case.label, annotation.array, plan), grid, order=0)
        counts = np.bincount(labels.ravel(), minlength=IGNORE_LABEL + 1).tolist()
        voxels = {str(number): counts[number] for number in plan.names.values()}
        if counts[IGNORE_LABEL]:
            voxels[str(IGNORE_LABEL)] = counts[IGNORE_LABEL]
    frames = normalise(to_frames(image.array, grid, order=1))
    StoreWriter(plan.folder).write_case(case.name, frames, labels)

    flat = image.array.reshape(-1, image.array.shape[-1])
    low, middle, high, top = np.percentile(flat, (0, 50, 99, 100), axis=0).tolist()
    return {
        "subject": case.subject,
        "part": case.part,
        "labelled": labels is not None,
        "fingerprint": fingerprint(image.array),
        "shape": list(image.array.shape[:3]),
        "native_spacing": [round(s, 6) for s in image.spacing],
        "orientation": image.orientation,
        "affine": image.affine.tolist(),
        "slice_axis": grid.axes[0] if plan.dimensions == 2 else None,
        "frames_shape": list(frames.shape),
        "intensity": {"minimum": low, "median": middle, "percentile_99": high, "maximum": top},
        "voxels": voxels,
    }


def _to_classes(path: Path, array: np.ndarray, plan: _Plan) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    for value, number in plan.classes.items():
        table[value] = number
    found = np.flatnonzero(np.bincount(array.ravel(), minlength=256)).tolist()
    if unknown := [value for value in found if value not in plan.classes]:
        raise InputError(
            path,
            f"unknown label values {', '.join(map(str, unknown))}",
            f"{', '.join(map(str, sorted(plan.classes)))} as in dataset.json",
            "correct the file or add the values to dataset.json",
        )
    return table[array]


def _manifest(
    dataset: RawDataset,
    surveys: Sequence[_Survey],
    records: Sequence[dict[str, Any]],
    plan: _Plan,
    config: PrepareConfig,
    data_hash: str,
) -> dict[str, Any]:
    cases: dict[str, Any] = {
        case.name: {
            **record,
            "sources": [{"path": path, "sha256": digest} for path, digest in survey.sources],
        }
        for case, survey, record in zip(dataset.cases, surveys, records, strict=True)
    }
    splits: list[Split]
    if dataset.splits:
        splits = [
            {"train": list(split.train), "validation": list(split.validation)}
            for split in dataset.splits
        ]
    else:
        splits = [seeded_split(cases, config.validation_fraction, config.seed)]
    if not config.allow_leak:
        refuse_leaks(dataset.root, cases, splits)
    manifest = {
        "format": FORMAT,
        "config": to_json(config),
        "config_hash": config_hash(config),
        "dimensions": plan.dimensions,
        "spacing": None if plan.spacing is None else list(plan.spacing),
        "channels": list(dataset.channels),
        "labels": plan.names,
        "label_values": list(plan.values),
        "splits": splits,
        "data_hash": data_hash,
        "cases": cases,
    }
    return {**manifest, "findings": findings(manifest)}
