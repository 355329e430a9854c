"""Checkpoints of a run: each is there whole, sealed by checksums, or not at all.

The only module that uses Orbax. A step's folder holds::

    model/        averaged weights and batch statistics: all that prediction and export need
    state/        everything the next step needs
    seal.json     SHA-256 of every file and of every array, the run's account, the score

A step is written and deleted under the name ``<step>.partial`` and renamed when it is whole: what
was cut off by a kill counts for nothing and is removed. Orbax restores flipped bytes in silence;
here a step whose bytes do not match its seal is damaged, and is never restored.

Of several processes one saves and all restore. Saving waits for the disk: a fifth of a second for
20 MB, in exchange for errors where they happen.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from penn_jax.optim.seal import damage, digests, named, read_seal, write_seal
from penn_jax.types import InputError

_PARTIAL = ".partial"
_METADATA_BYTES = 1 << 20
"""More than the files about a step's arrays take."""
_LATEST_KEPT = 2
"""Damage to the newest leaves the one before."""

Warn = Callable[[str], None]
"""Takes one line for the user."""


class Checkpoints:
    """The checkpoints of one run directory: the latest two and the best one are kept.

    Args:
        folder: ``<run>/checkpoints``; made where it is missing. Damaged steps are moved to
            ``<run>/damaged``.
        warn: told of each damaged step.
    """

    def __init__(self, folder: Path, warn: Warn):
        self._folder = folder.resolve()  # Orbax takes absolute paths only
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob(f"*{_PARTIAL}"):
            shutil.rmtree(path)
        aside = []
        for step in saved_steps(self._folder):
            path = self._folder / str(step)
            if wrong := damage(path):
                aside.append(_set_aside(path, self._folder.parent / "damaged"))
                warn(f"{path}: damaged ({wrong}), left out and moved to {aside[-1]}")
        if aside and self.latest() is None:
            raise InputError(
                self._folder,
                "no checkpoint is whole",
                "one at least to go on from",
                f"copy the run again ({aside[0].parent} holds what was here) or start a new one",
            )
        if aside:
            warn(f"{self._folder}: goes on from step {self.latest()}")

    def save(
        self, step: int, model: Any, state: Any, account: dict[str, Any], score: float | None
    ) -> None:
        """Write a checkpoint, then delete those that are no longer kept.

        Args:
            step: steps done.
            model: the variables that predict.
            state: the training state.
            account: of the run, plain JSON types.
            score: higher is better; None ranks below every score.

        Raises:
            InputError: the disk is full or cannot be written. Earlier checkpoints are untouched.
        """
        # As NumPy arrays: Orbax would tie jax's to the devices they lie on.
        items = {"model": jax.tree.map(np.asarray, model), "state": jax.tree.map(np.asarray, state)}
        path = self._folder / f"{step}{_PARTIAL}"
        try:
            _check_room(self._folder, items)
            path.mkdir()
            for name, tree in items.items():
                with _orbax() as writer:
                    writer.save(path / name, args=ocp.args.StandardSave(tree))
            arrays = {name: digests(tree) for name, tree in items.items()}
            write_seal(path, {"account": account, "score": score, "arrays": arrays})
            path.rename(self._folder / str(step))
        except Exception as error:  # Orbax and TensorStore raise many kinds for a full disk
            shutil.rmtree(path, ignore_errors=True)
            raise InputError(
                path,
                f"cannot be written ({_first_line(error)})",
                "a disk with room and permission to write",
                "make room, then go on with --resume: earlier checkpoints are whole",
            ) from error
        self._prune()

    def latest(self) -> int | None:
        """The newest whole step, or None."""
        return max(saved_steps(self._folder), default=None)

    def restore_state(self, step: int, like: Any) -> Any:
        """The training state, shaped like ``like``.

        Raises:
            InputError: the step is of another network: the first array that differs is named
                with both shapes.
        """
        path = self._folder / str(step)
        stored = read_seal(path)["arrays"]["state"]
        wanted = {name: list(np.shape(leaf)) for name, leaf in named(like)}
        for name in sorted(stored.keys() | wanted.keys()):
            there, here = stored.get(name, {}).get("shape"), wanted.get(name)
            if there != here:
                raise InputError(
                    path,
                    f"{name} is {_said(there)}",
                    _said(here),
                    "use the config that wrote it, or another run directory",
                )
        return _restore(path, "state", _abstract(like))

    def restore_account(self, step: int) -> dict[str, Any]:
        """The run's account at that step."""
        return read_seal(self._folder / str(step))["account"]

    def _prune(self) -> None:
        steps = sorted(saved_steps(self._folder))
        kept = {*steps[-_LATEST_KEPT:], *_best_first(self._folder)[:1]}
        for step in steps:
            if step not in kept:
                path = self._folder / str(step)
                shutil.rmtree(path.rename(path.with_name(f"{step}{_PARTIAL}")))


def read_model(
    folder: Path,
    warn: Warn,
    newest: bool = False,
    bring: Callable[[Path], None] = lambda step: None,
) -> dict[str, Any]:
    """The variables of the best whole checkpoint, as a tree of dictionaries of arrays.

    Nothing is written, so that a run may be read while it trains.

    Args:
        folder: ``<run>/checkpoints``.
        warn: told of each better checkpoint that is damaged.
        newest: take the newest instead, which no validation case has chosen.
        bring: called before a step is read, of which nothing but its seal need be there by then.

    Raises:
        InputError: there is no checkpoint, or none is whole.
    """
    expected, remedy = "a finished checkpoint of penn train", "train first, or copy the run again"
    folder = folder.resolve()
    damaged: set[int] = set()
    while steps := [
        step
        for step in (sorted(saved_steps(folder), reverse=True) if newest else _best_first(folder))
        if step not in damaged
    ]:
        path = folder / str(steps[0])
        try:
            bring(path)
            wrong = damage(path)
            if not wrong:
                return _restore(path, "model", None)
        except InputError as error:
            wrong = error.wrong
        if path.exists():  # and was not replaced by a better one while it was read
            damaged.add(steps[0])
            warn(f"{path}: damaged ({wrong}), left out")
    wrong = "no whole checkpoint" if damaged else "no checkpoints"
    raise InputError(folder, wrong, expected, remedy)


def saved_steps(folder: Path) -> list[int]:
    """The steps of which ``<run>/checkpoints`` holds a checkpoint; none where it is missing."""
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir()]


def _check_room(folder: Path, items: Any) -> None:
    """Look before writing: TensorStore's threads print tracebacks when they meet a full disk."""
    needed = _METADATA_BYTES + sum(array.nbytes for array in jax.tree.leaves(items))
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"{free / 2**20:.1f} MiB are free, {needed / 2**20:.1f} MiB are needed")


# ---- folders -----------------------------------------------------------------------------------


def _best_first(folder: Path) -> list[int]:
    """Steps by score, the newest first among equals.

    One whose seal cannot be read comes first of all: it may be the best, and its damage is told
    when it is tried.
    """

    def rank(step: int) -> tuple[float, int]:
        try:
            score = read_seal(folder / str(step))["score"]
        except InputError:
            return (np.inf, step)
        return (-np.inf if score is None else score, step)

    return sorted(saved_steps(folder), key=rank, reverse=True)


def _set_aside(path: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    target, number = folder / path.name, 1
    while target.exists():
        number += 1
        target = folder / f"{path.name}-{number}"
    return path.rename(target)


# ---- Orbax -------------------------------------------------------------------------------------


def _orbax() -> ocp.Checkpointer:
    """Reads and writes for this process alone: Orbax would wait for all others at each step of it.

    Every process of a run holds the whole state, so that one can write it, and each reads it.
    """
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _restore(path: Path, item: str, target: Any) -> Any:
    try:
        with _orbax() as reader:
            tree = reader.restore(path / item, args=ocp.args.StandardRestore(target))
    except Exception as error:  # Orbax raises bare exceptions for what it cannot read
        raise InputError(
            path / item,
            f"cannot be restored ({_first_line(error)})",
            "a whole checkpoint of this network",
            "use another checkpoint, or the config that wrote this one",
        ) from error
    stored = read_seal(path)["arrays"][item]
    for name, found in digests(tree).items():
        if stored.get(name) != found:
            raise InputError(
                path / item,
                f"{name} was restored with other values",
                "the values that were saved",
                "install the version of orbax-checkpoint that environment.json names",
            )
    return tree


def _abstract(tree: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jax.numpy.shape(x), x.dtype, sharding=sharding), tree
    )


def _said(shape: list[int] | None) -> str:
    return "missing" if shape is None else f"of shape {tuple(shape)}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
