"""Which runs a study wants, and in which folders of it they lie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from penn_jax.config import Arm, Config, Study, config_hash
from penn_jax.run import read_json
from penn_jax.study_table import mean_dice, time_to_target


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    folder: Path
    config: Config
    fold: int
    choosing: bool = False
    """On a split inside the training cases."""
    restores: bool = False
    """Its task is to restore corrupted patches."""
    phantoms: int = 0
    """Its cases are so many synthetic spines; 0: those of the study's data."""
    start: Job | None = None
    """The run whose weights start this one."""
    teacher: Job | None = None
    """The run whose predictions stand for labels."""

    @property
    def result(self) -> Path:
        """The file that says it is done."""
        return self.folder / "result.json"


def before(job: Job) -> Iterator[Job]:
    """All runs without which this one could not be: what started it, what taught that, …"""
    for first in (job.start, job.teacher):
        if first is not None:
            yield from before(first)
            yield first


def wanted(asked: Study, out: Path) -> Iterator[Job]:
    """All runs that can be named by now: those of an arm with a sweep wait for its choice."""
    for fold in asked.folds:
        for arm in asked.arms:
            yield from sweep(arm, fold, asked, out)
    for seed in asked.seeds:
        for arm in asked.arms:
            for fold in asked.folds:
                if (job := compared_run(arm, fold, seed, asked, out)) is not None:
                    yield job


def chosen_rate(arm: Arm, fold: int, asked: Study, out: Path) -> float | None:
    """The arm's learning rate; None while its sweep is not done."""
    tries = list(sweep(arm, fold, asked, out))
    if not tries:
        return arm.config.optim.learning_rate
    if not all(job.result.exists() for job in tries):
        return None

    def rank(job: Job) -> tuple[float, float]:
        result = read_json(job.result)
        reached = time_to_target(result, asked.target_dice)
        return (reached[0] if reached else math.inf, -(mean_dice(result) or 0.0))

    return min(tries, key=rank).config.optim.learning_rate


def compared_run(arm: Arm, fold: int, seed: int, asked: Study, out: Path) -> Job | None:
    """A run that is compared; None while its learning rate, or its teacher's, is not chosen."""
    if (rate := chosen_rate(arm, fold, asked, out)) is None:
        return None
    teacher = None
    if arm.teacher is not None:
        taught_by = next(other for other in asked.arms if other.name == arm.teacher)
        if (teacher := compared_run(taught_by, fold, seed, asked, out)) is None:
            return None
    return Job(
        out / "runs" / arm.name / f"fold{fold}-seed{seed}",
        _supervised(arm, seed, rate),
        fold,
        start=_pretraining(arm, fold, seed, out, teacher),
    )


def sweep(arm: Arm, fold: int, asked: Study, out: Path) -> Iterator[Job]:
    """The runs that choose an arm's learning rate; none where it has one."""
    for rate in arm.learning_rates:
        yield Job(
            out / "sweeps" / arm.name / f"fold{fold}-rate{rate:g}",
            _supervised(arm, asked.sweep_seed, rate),
            fold,
            choosing=True,
            start=_pretraining(arm, fold, asked.sweep_seed, out, choosing=True),
        )


def _supervised(arm: Arm, seed: int, rate: float) -> Config:
    config = replace(arm.config, train=replace(arm.config.train, seed=seed))
    return replace(config, optim=replace(config.optim, learning_rate=rate))


def _pretraining(
    arm: Arm,
    fold: int,
    seed: int,
    out: Path,
    teacher: Job | None = None,
    choosing: bool = False,
) -> Job | None:
    if arm.pretrain is None:
        return None
    config = replace(arm.pretrain, train=replace(arm.pretrain.train, seed=seed))
    if arm.phantoms:  # of no split of the data
        folder = out / "pretraining" / f"{config.name}-{config_hash(config)[:8]}-{arm.phantoms}"
        return Job(folder, config, 0, phantoms=arm.phantoms)
    by = "" if arm.teacher is None else f"-by-{arm.teacher}"
    inner = "-inner" if choosing else ""
    folder = out / "pretraining" / f"{config.name}-{config_hash(config)[:8]}{by}-fold{fold}{inner}"
    return Job(folder, config, fold, choosing, restores=teacher is None, teacher=teacher)
