"""``penn study``: ways to train compared over seeds and folds; resumable, shared by processes.

The folder of a study::

    study.json         what was asked, and the hash of the data
    pretraining/       runs whose weights start others, one for all arms that ask for the same
    sweeps/<arm>/      runs that choose a learning rate
    runs/<arm>/        the runs compared
    table.json         what they say; the same as table.md, cases.csv and report.html

Each run is a run directory with a ``result.json`` when it is done. A run is held by the process
that writes it, so that any number of processes may work on one study.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np

from penn_jax.config import Study, to_json, write_json
from penn_jax.data.leaks import kin
from penn_jax.data.manifest import Split
from penn_jax.data.remote import Place
from penn_jax.data.store import Store
from penn_jax.pretrain import pretrain
from penn_jax.progress import say
from penn_jax.report.metrics import Confusion, confusion
from penn_jax.run import load_model, read_json
from penn_jax.settings import parse_section
from penn_jax.study_jobs import Job, before, chosen_rate, compared_run, sweep, wanted
from penn_jax.study_phantoms import check_phantoms, phantom_store
from penn_jax.study_table import Run, Tried, mean_dice, validation_curve, write_table
from penn_jax.task import check_fit
from penn_jax.train import case_counts, labelled_cases, labelled_subset, train
from penn_jax.types import BusyError, DivergedError, InputError

_HELD_OUT = 4
"""Of the training people one in so many is held out to choose a learning rate."""
_LOCK = ".lock"
"""Held where the folder is begun and where the table is written."""
_WAIT = 5.0
"""Seconds between looks at runs that other processes hold."""


def study(
    asked: Study, data: Place | str, out: Path, resume: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Do what is left to do of a study, then write its table.

    Args:
        asked: the arms, seeds and folds.
        data: folder of the prepared store.
        out: folder of the study.
        resume: go on with what is there; also how a further process joins in.
        progress: say which runs are done, and show a progress line where stderr is a terminal.

    Returns:
        The table (``table.json``).

    Raises:
        InputError: config or data do not fit, or ``out`` holds something else.
        StoppedError: SIGTERM or Ctrl-C came; all is saved.
    """
    store = Store(data)
    out = out.resolve()  # runs record where the weights are that start them
    _check_fit(asked, store)
    _open(asked, store, out, resume)
    while pending := [job for job in wanted(asked, out) if not job.result.exists()]:
        for job in pending:
            seen = inner_store(store, job.fold) if job.choosing else store
            if (done := _attempt(job, seen, progress)) is not None:
                say(f"{done.folder.relative_to(out)}: {_told(read_json(done.result))}", progress)
                break
        else:
            time.sleep(_WAIT)
    with filelock.FileLock(out / _LOCK):
        return _write(asked, prepared_hash(store), out)


def inner_store(store: Store, fold: int) -> Store:
    """The store with a split inside a fold's labelled training cases, to make choices on.

    Every fourth of the training people is held out in place of the validation cases, which are
    not seen at all.

    Raises:
        InputError: there are too few people to hold one out.
    """
    training, _ = labelled_cases(store, fold)
    kin_of = kin(store.manifest["cases"])
    held_out = set(sorted({kin_of[name] for name in training})[_HELD_OUT - 1 :: _HELD_OUT])
    if not held_out:
        raise InputError(
            store.path,
            "too few training people to choose a learning rate on",
            f"{_HELD_OUT} at least",
            "leave learning_rates out of the study",
        )
    split, splits = store.split(fold), list(store.manifest["splits"])
    splits[fold] = Split(
        train=[name for name in split["train"] if kin_of[name] not in held_out],
        validation=[name for name in training if kin_of[name] in held_out],
    )
    return store.with_splits(splits, unseen=split["validation"])


def _check_fit(asked: Study, store: Store) -> None:
    """Tell before the first run what would stop a later one."""
    for fold in asked.folds:
        training, _ = labelled_cases(store, fold)
        for arm in asked.arms:
            check_fit(arm.config, store)
            labelled_subset(training, arm.config.train)
            if arm.pretrain is not None:
                check_fit(arm.pretrain, store)
            if arm.phantoms:
                check_phantoms(store)
            if arm.learning_rates:
                inner_store(store, fold)


def _open(asked: Study, store: Store, out: Path, resume: bool) -> None:
    """Make the folder of a study, or check that the one there is the same study."""
    record = {"study": to_json(asked), "prepared_hash": prepared_hash(store)}
    path = out / "study.json"
    if out.exists() and not path.exists() and not all(_is_ours(there) for there in out.iterdir()):
        raise InputError(out, "is not empty and not a study", "a new folder", "choose another")
    out.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(out / _LOCK):
        if not path.exists():
            write_json(path, record)
        elif not resume:
            raise InputError(
                out, "holds a study", "a new folder", "add --resume, or choose another"
            )
        elif not _is_same(read_json(path), asked, store, path):
            raise InputError(
                path,
                "was written for another study or other data",
                "the study of this command",
                "resume with the same file and data, or choose another folder",
            )


def _is_same(there: dict[str, Any], asked: Study, store: Store, path: Path) -> bool:
    # As a study, not as text: a file of an earlier version may lack a value that has a default.
    begun = parse_section(Study, there.get("study"), path)
    return begun == asked and there.get("prepared_hash") == prepared_hash(store)


def _is_ours(path: Path) -> bool:
    """What a study leaves that was killed, or that another process is about to write."""
    return path.name in (_LOCK, "study.json", ".study.json.partial")


def _attempt(job: Job, store: Store, progress: bool) -> Job | None:
    """Do a run, or the one that must come before it; None where another process does or did it."""
    for first in (job.start, job.teacher):
        if first is not None and not first.result.exists():
            return _attempt(first, store, progress)
    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        # Until the result is written: the run's own lock ends with its training.
        with filelock.FileLock(f"{job.folder}.lock", timeout=0):
            if job.result.exists():
                return None
            write_json(job.result, _do(job, store, progress))
    except (filelock.Timeout, BusyError):
        return None
    jax.clear_caches()  # the programs of runs that are done would fill the memory
    return job


def _do(job: Job, store: Store, progress: bool) -> dict[str, Any]:
    resume = (job.folder / "config.json").exists()
    record = {"code": code_hash(), "config": to_json(job.config)}
    counts: dict[str, Confusion] = {}
    if job.phantoms:
        store = phantom_store(job.folder.parent / "phantoms", job.phantoms, store)
    try:
        for first in (job.start, job.teacher):
            if first is not None and "diverged" in read_json(first.result):
                raise DivergedError(f"{first.folder} diverged")
        if job.restores:
            made = pretrain(job.config, store, job.folder, resume, job.fold, progress)
            return record | made
        start, teacher = (other.folder if other else None for other in (job.start, job.teacher))
        made = train(job.config, store, job.folder, start, resume, job.fold, progress, teacher)
    except DivergedError as error:
        # It segments nothing, and counts as such.
        made = {"diverged": str(error), "step": 0, "seconds": 0.0, "curve": []}
        counts = empty_counts(store, job.fold)
    else:
        config, card, variables = load_model(job.folder, newest=True)
        _, validation = labelled_cases(store, job.fold)
        counts = case_counts(store, validation, config, card)(variables)
        made["curve"] = validation_curve(job.folder / "metrics.jsonl")
    # (tp, fp, fn, tn), each of every foreground class.
    return record | made | {"counts": {case: c.array().tolist() for case, c in counts.items()}}


def empty_counts(store: Store, fold: int) -> dict[str, Confusion]:
    """The counts of masks without any foreground."""
    _, validation = labelled_cases(store, fold)
    classes = [label for label in store.manifest["labels"].values() if label > 0]
    counts = {}
    for case in validation:
        labels = store.labels(case, tuple(slice(0, size) for size in store.frames_shape(case)[:-1]))
        counts[case] = confusion(np.zeros_like(labels), labels, classes)
    return counts


def _write(asked: Study, prepared: str, out: Path) -> dict[str, Any]:
    """The table, when everything is done."""
    runs: dict[str, list[Run]] = {}
    pretraining: dict[str, list[list[dict[str, Any]]]] = {}
    sweeps: dict[str, list[Tried]] = {}
    for arm in asked.arms:
        jobs = [
            (seed, compared_run(arm, fold, seed, asked, out))
            for fold in asked.folds
            for seed in asked.seeds
        ]
        runs[arm.name] = [
            Run(job.folder.relative_to(out).as_posix(), job.fold, seed, read_json(job.result))
            for seed, job in jobs
            if job is not None
        ]
        pretraining[arm.name] = [
            [read_json(first.result) for first in before(job)] for _, job in jobs if job is not None
        ]
        sweeps[arm.name] = [
            Tried(
                fold,
                job.config.optim.learning_rate == chosen_rate(arm, fold, asked, out),
                read_json(job.result),
            )
            for fold in asked.folds
            for job in sweep(arm, fold, asked, out)
        ]
    return write_table(asked, out, prepared, runs, pretraining, sweeps)


def _told(result: dict[str, Any]) -> str:
    if "diverged" in result:
        return "diverged, counts as Dice 0"
    dice = f", Dice {mean_dice(result) or 0.0:.4f}" if "counts" in result else ""
    return f"{result['step']} steps in {result['seconds']:.0f} s{dice}"


def prepared_hash(store: Store) -> str:
    """Sixteen hex digits over the scans and labels, how they were prepared, and the splits."""
    manifest = store.manifest
    parts = [manifest[name] for name in ("data_hash", "config_hash", "splits")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@functools.cache  # of the code that runs, were its files to change meanwhile
def code_hash() -> str:
    """Sixteen hex digits of the SHA-256 of the package's source files."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
