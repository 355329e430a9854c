"""Which estimate of a case's quality goes along with its true Dice: Spearman's rank correlation.

    python benchmarks/quality.py --run RUN --data PREPARED [--part validation|spare|train]

The estimates are made without the reference: from the network evaluated once, and from the mean
over all mirrorings of all the runs given. ``spare`` are the labelled training cases that a run
with ``--train.labelled`` was not given: an estimate is chosen on these, its figure told on the
validation cases. The interval is a percentile bootstrap over cases.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, generate_binary_structure
from scipy.stats import spearmanr

from penn_jax.data.store import Store
from penn_jax.engine import Model, ensemble, load_models
from penn_jax.predict.case import most_likely
from penn_jax.predict.certainty import (
    entropy,
    expected_dice,
    inside_probability,
    overlap_sums,
)
from penn_jax.predict.dense import Forward, Tiling, flips, predict_frames
from penn_jax.report.metrics import case_metrics, confusion, mean_over_cases
from penn_jax.run import enable_compile_cache
from penn_jax.train import labelled_cases, labelled_subset

RESAMPLES = 2000
INSIDE = "mean probability inside the mask"
"""What ``penn predict`` reports as confidence."""
ONCE = ", evaluated once"

Estimates = dict[str, float]
"""Name -> the larger, the better the mask should be."""


# ---- the estimates -----------------------------------------------------------------------------


def estimates(members: Sequence[np.ndarray]) -> Estimates:
    """Every estimate of one case.

    Args:
        members: probabilities (F, *spatial, K) that are averaged; the first stands alone too.
    """
    likely = np.mean(members, axis=0)
    mask, first = most_likely(likely), most_likely(members[0])
    uncertain, border = entropy(likely), near_border(mask > 0)
    found = int(np.count_nonzero(mask))
    once, mean = overlap_sums(members[0], first), overlap_sums(likely, mask)
    agreement = [overlap(most_likely(member), mask) for member in members]
    return {
        f"{INSIDE}{ONCE}": over_classes(inside_probability(once)),
        INSIDE: over_classes(inside_probability(mean)),
        f"expected Dice{ONCE}": over_classes(expected_dice(once)),
        "expected Dice": over_classes(expected_dice(mean)),
        "- mean entropy at the border": -float(uncertain[border].mean()) if found else -1.0,
        "- total entropy / size of the mask": -float(uncertain.sum() / max(found, 1)),
        "agreement of the members with their mean": float(np.mean(agreement)),
        "size of the mask": float(found),
    }


def over_classes(values: np.ndarray) -> float:
    """The mean over the classes in the mask, 0 without any, as ``penn predict`` takes it."""
    return 0.0 if np.isnan(values).all() else float(np.nanmean(values))


def near_border(mask: np.ndarray) -> np.ndarray:
    """Voxels within one of the border, inside or outside, frame by frame."""
    in_frame = generate_binary_structure(mask.ndim, 1)
    in_frame[[0, 2]] = False
    return binary_dilation(mask, in_frame) & ~binary_erosion(mask, in_frame, border_value=1)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of the foregrounds; 0 where there is none."""
    size = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * np.count_nonzero((one == other) & (one > 0)) / size if size else 0.0


# ---- the cases ---------------------------------------------------------------------------------


def chosen_cases(store: Store, model: Model, part: str) -> list[str]:
    training, validation = labelled_cases(store, model.card["fold"])
    if part == "validation":
        return validation
    if part == "train":
        return training
    given = set(labelled_subset(training, model.config.train))
    return [case for case in training if case not in given]


def mirrored(forward: Forward, axes: Sequence[int]) -> Forward:
    return lambda tiles: np.flip(forward(np.ascontiguousarray(np.flip(tiles, axes))), axes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="averaged")
    parser.add_argument("--data", type=Path, required=True, help="their prepared store")
    parser.add_argument("--part", choices=("validation", "spare", "train"), default="validation")
    parser.add_argument("--limit", type=int, help="at most so many cases, evenly spread")
    parser.add_argument("--engine", choices=("auto", "jax", "onnxruntime"), default="auto")
    options = parser.parse_args()
    enable_compile_cache()

    models, store = load_models(options.run), Store(options.data)
    settings = replace(models[0].config.predict, mirror=False)
    plans: list[tuple[Forward, Tiling]] = []
    for model in models:
        forward, plan = ensemble([model], settings, options.engine)
        for choice in flips(model.card["dimensions"]):
            axes = tuple((1 + np.flatnonzero(choice)).tolist())
            plans.append((mirrored(forward, axes), plan))
    cases = chosen_cases(store, models[0], options.part)
    if options.limit and options.limit < len(cases):
        cases = [cases[int(i)] for i in np.linspace(0, len(cases) - 1, options.limit)]
    classes = [label for label in models[0].card["labels"].values() if label > 0]

    found: list[Estimates] = []
    dice: dict[str, list[float]] = {"once": [], "mean": []}
    for case in cases:
        box = tuple(slice(0, size) for size in store.frames_shape(case)[:-1])
        image, reference = store.image(case, box), store.labels(case, box)
        members = [predict_frames(forward, image, plan) for forward, plan in plans]
        found.append(estimates(members))
        for name, likely in (("once", members[0]), ("mean", np.mean(members, axis=0))):
            counts = confusion(most_likely(likely), reference, classes)
            dice[name].append(case_metrics(counts)["dice"])
    print_table(found, dice, options.part)


def print_table(found: Sequence[Estimates], dice: dict[str, list[float]], part: str) -> None:
    mean = {name: mean_over_cases(np.array(values))["value"] for name, values in dice.items()}
    missed = sum(value == 0 for value in dice["mean"])
    print(
        f"{len(found)} {part} cases, {missed} of Dice 0; mean Dice {mean['once']:.4f} evaluated "
        f"once, {mean['mean']:.4f} averaged"
    )
    print("| estimate | rank correlation with Dice | 95 % interval | where Dice > 0 |")
    print("|---|---|---|---|")
    rng = np.random.default_rng(0)
    for name in found[0]:
        true = np.array(dice["once" if name.endswith(ONCE) else "mean"])
        values = np.array([case[name] for case in found])
        known = ~np.isnan(true)
        true, values = true[known], values[known]
        draws = rng.integers(0, len(true), (RESAMPLES, len(true)))
        spread = [spearmanr(values[draw], true[draw]).statistic for draw in draws]
        low, high = np.percentile(spread, (2.5, 97.5))
        hit = true > 0
        print(
            f"| {name} | {spearmanr(values, true).statistic:.3f} | {low:.3f} to {high:.3f} | "
            f"{spearmanr(values[hit], true[hit]).statistic:.3f} |"
        )


if __name__ == "__main__":
    main()
