"""What the runs of a study say together: one table, and a hash by which a repeat is compared."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from penn_jax.config import Arm, Study, config_hash, write_json
from penn_jax.report import metrics as scores
from penn_jax.report.comparison import Difference, compare_arms, holm
from penn_jax.report.html import write_page
from penn_jax.report.study_page import study_page
from penn_jax.report.study_tables import study_csv, study_markdown
from penn_jax.run import environment

Result = Mapping[str, Any]
"""The ``result.json`` of a run."""


class Run(NamedTuple):
    """A run that is compared."""

    folder: str
    fold: int
    seed: int
    result: Result


class Tried(NamedTuple):
    """A run that tried a learning rate."""

    fold: int
    chosen: bool
    result: Result


def write_table(
    asked: Study,
    out: Path,
    prepared: str,
    runs: Mapping[str, Sequence[Run]],
    pretraining: Mapping[str, Sequence[Sequence[Result]]],
    sweeps: Mapping[str, Sequence[Tried]],
) -> dict[str, Any]:
    """Compare the arms and write ``table.json``, ``table.md``, ``cases.csv`` and ``report.html``.

    Args:
        asked: the study.
        out: its folder.
        prepared: hash of the prepared store.
        runs: arm -> its runs, folds in the same order for every arm.
        pretraining: arm -> for each of its runs the results of all that had to be run before it.
        sweeps: arm -> the runs that chose its learning rate.

    Returns:
        The table, as ``report/study_tables.py`` describes it.
    """
    differences = _differences(
        asked, {name: _by_seed(asked, of_arm, "dice") for name, of_arm in runs.items()}
    )
    made = [run.result for of_arm in runs.values() for run in of_arm]
    made += [result for of_arm in pretraining.values() for chain in of_arm for result in chain]
    made += [tried.result for of_arm in sweeps.values() for tried in of_arm]
    table = {
        "name": asked.name,
        "title": asked.title,
        "note": asked.note,
        "date": datetime.now(UTC).date().isoformat(),
        "target_dice": asked.target_dice or None,
        "seeds": list(asked.seeds),
        "folds": list(asked.folds),
        "machine": environment(),
        "command": f"penn study CONFIG --data PREPARED --out {shlex.quote(out.name)}",
        "hashes": {
            "definition": config_hash(asked),
            "data": prepared,
            "code": ", ".join(sorted({result["code"] for result in made})),
            "results": results_hash(runs),
        },
        "repeatable": repeatable(asked),
        "arms": [
            _arm(arm, asked, runs[arm.name], pretraining[arm.name], sweeps[arm.name])
            | {"difference": differences[arm.name]}
            for arm in asked.arms
        ],
    }
    write_json(out / "table.json", table)
    for name, text in (
        ("table.md", study_markdown(table)),
        ("cases.csv", study_csv(table)),
        ("report.html", study_page(table)),
    ):
        write_page(out / name, text)
    return table


def repeatable(asked: Study) -> bool:
    """Whether no budget follows the clock."""
    configs = [config for arm in asked.arms for config in (arm.config, arm.pretrain)]
    return not any(config is not None and config.train.max_seconds for config in configs)


def results_hash(runs: Mapping[str, Sequence[Run]]) -> str:
    """Sixteen hex digits over all that does not depend on the clock.

    Steps, voxel counts of every case and the learning curves by step: equal where a study with
    budgets in steps is repeated on the same machine.
    """
    rows = [
        [
            [arm, run.fold, run.seed, run.result["step"], run.result["counts"]],
            [(step, dice) for step, _, dice in run.result["curve"]],
        ]
        for arm, of_arm in sorted(runs.items())
        for run in of_arm
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def validation_curve(metrics_jsonl: Path) -> list[tuple[int, float, float]]:
    """(step, seconds, mean Dice) of each validation of a run."""
    lines = metrics_jsonl.read_text(encoding="utf-8").splitlines()
    points = [json.loads(line) for line in lines]
    return [(p["step"], p["seconds"], p["dice"]) for p in points if "dice" in p]


def time_to_target(result: Result, target: float) -> tuple[int, float] | None:
    """Steps and seconds at the first validation that reached the target; None: never, or none.

    What a run reached before it diverged does not count.
    """
    if not target or "diverged" in result:
        return None
    return next(((step, s) for step, s, dice in result["curve"] if dice >= target), None)


def mean_dice(result: Result) -> float | None:
    """Mean over the cases in which Dice is defined, of each the mean over its classes."""
    dice = [scores.case_metrics(count)["dice"] for count in _counts(result).values()]
    defined = [value for value in dice if not math.isnan(value)]
    return float(np.mean(defined)) if defined else None


def _counts(result: Result) -> dict[str, scores.Confusion]:
    return {name: scores.Confusion(*np.array(rows)) for name, rows in result["counts"].items()}


def _by_seed(asked: Study, of_arm: Sequence[Run], metric: str) -> np.ndarray:
    """(seeds, cases) of a metric: the validation cases of all folds beside each other."""
    return np.array(
        [
            [
                scores.case_metrics(count)[metric]
                for run in of_arm
                if run.seed == seed
                for count in _counts(run.result).values()
            ]
            for seed in asked.seeds
        ]
    )


def _differences(asked: Study, dice: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Each arm against its own baseline, corrected for all comparisons of the study."""
    found: dict[str, Difference] = {}
    for arm in asked.arms:
        if arm.baseline is not None:
            pair = {name: dice[name] for name in (arm.baseline, arm.name)}
            difference = compare_arms(pair, arm.baseline)[arm.name].difference
            if difference is not None:
                found[arm.name] = difference
    tested = {name: found_p.p for name, found_p in found.items() if found_p.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {
        arm.name: None
        if arm.name not in found
        else {
            "value": found[arm.name].mean,
            **{part: getattr(found[arm.name], part) for part in ("ci95", "ci95_seeds", "p")},
            "p_holm": corrected.get(arm.name),
        }
        for arm in asked.arms
    }


def _arm(
    arm: Arm,
    asked: Study,
    of_arm: Sequence[Run],
    pretraining: Sequence[Sequence[Result]],
    sweep: Sequence[Tried],
) -> dict[str, Any]:
    results = [run.result for run in of_arm]
    targets = [time_to_target(result, asked.target_dice) for result in results]
    # Of each case the counts of all seeds, so that intervals are over cases.
    of_cases: dict[str, list[scores.Confusion]] = {}
    for result in results:
        for name, count in _counts(result).items():
            of_cases.setdefault(name, []).append(count)
    cases = [scores.total(counts) for counts in of_cases.values()]
    intervals = scores.pooled_intervals(cases)
    pooled = {
        metric: {"value": _or_none(value), "ci95": intervals[metric]}
        for metric, value in scores.pooled_metrics(scores.total(cases)).items()
    }
    means = {
        metric: scores.mean_over_cases(_by_seed(asked, of_arm, metric).mean(axis=0))
        for metric in scores.METRICS
    }
    return {
        "name": arm.name,
        "description": arm.description,
        "baseline": arm.baseline,
        "dice": means["dice"],
        "six": {"pooled": pooled, "mean": means},
        "runs": [
            {
                "seed": run.seed,
                "fold": run.fold,
                "folder": run.folder,
                "learning_rate": run.result["config"]["optim"]["learning_rate"],
                "dice": mean_dice(run.result),
                "diverged": "diverged" in run.result,
                "cases": {
                    name: {metric: _or_none(v) for metric, v in scores.case_metrics(count).items()}
                    for name, count in _counts(run.result).items()
                },
                "curve": run.result["curve"],
            }
            for run in of_arm
        ],
        "steps": [result["step"] for result in results],
        "seconds": [result["seconds"] for result in results],
        "steps_to_target": [target and target[0] for target in targets],
        "seconds_to_target": [target and target[1] for target in targets],
        "sweep": [
            {
                "fold": tried.fold,
                "learning_rate": tried.result["config"]["optim"]["learning_rate"],
                "dice": mean_dice(tried.result),
                "diverged": "diverged" in tried.result,
                "steps_to_target": (time_to_target(tried.result, asked.target_dice) or [None])[0],
                "chosen": tried.chosen,
            }
            for tried in sweep
        ],
        "pretraining": {
            name: float(np.mean([sum(result[of] for result in chain) for chain in pretraining]))
            for name, of in (("steps", "step"), ("seconds", "seconds"))
        }
        if any(pretraining)
        else None,
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
