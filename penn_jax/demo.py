"""``penn demo``: the whole path on synthetic spines, with nothing to download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from penn_jax.config import (
    Config,
    ModelConfig,
    OptimConfig,
    PatchConfig,
    PrepareConfig,
    TrainConfig,
)
from penn_jax.data.grid import to_frames
from penn_jax.data.phantom import write_dataset
from penn_jax.data.prepare import prepare
from penn_jax.data.volume import frame_grid, read_image, read_labels
from penn_jax.evaluate import evaluate
from penn_jax.pretrain import pretrain
from penn_jax.progress import say
from penn_jax.report.figures import learning_curves, overlay
from penn_jax.segment import predict
from penn_jax.train import train
from penn_jax.types import InputError

CASES, TEST_CASES, SEED = 72, 20, 7

CONFIG = Config(
    name="demo",
    patches=PatchConfig(size=(112, 112), neighbours=1, foreground_fraction=0.4),
    model=ModelConfig(stem=2, channels=(24, 48, 96, 128)),
    optim=OptimConfig(learning_rate=0.1, average=0.99),
    # Whichever comes first: the steps, or the seconds on a slow machine.
    train=TrainConfig(batch_size=8, max_steps=1000, max_seconds=140.0, checkpoint_every=0),
)
PRETRAINING = replace(
    CONFIG, name="demo-pretrain", train=replace(CONFIG.train, max_steps=100, max_seconds=20.0)
)


def demo(out: Path, progress: bool = True) -> dict[str, Any]:
    """Make phantoms, prepare, pre-train briefly, train, predict, evaluate, draw.

    Args:
        out: new folder for all of it.
        progress: say what is done, and show progress lines where stderr is a terminal.

    Returns:
        What ``evaluate`` finds of the test cases.

    Raises:
        InputError: ``out`` is there already.
    """
    if out.exists():
        raise InputError(out, "exists", "a new folder", "choose another with --out, or delete it")
    out.mkdir(parents=True)
    raw, store, masks = out / "raw", out / "prepared", out / "masks"

    say(f"synthetic spines: {CASES} to train and validate, {TEST_CASES} to test", progress)
    write_dataset(raw, CASES, SEED, TEST_CASES)
    prepare(raw, store, PrepareConfig(), progress=progress)
    say("pre-training: restore masked patches", progress)
    pretrain(PRETRAINING, store, out / "pretrain", progress=progress)
    say("training", progress)
    result = train(CONFIG, store, out / "train", init=out / "pretrain", progress=progress)
    said = f"{result['step']} steps in {result['seconds']:.0f} s; predicting the test cases"
    say(said, progress)
    predict([out / "train", raw / "imagesTs"], masks, progress=progress)
    evaluation = evaluate(masks, raw / "labelsTs", out=out / "metrics.json")

    draw(raw / "imagesTs", raw / "labelsTs", masks, evaluation["cases"], out / "overlay.png")
    learning_curves(out / "curves.png", out / "train" / "metrics.jsonl")
    return evaluation


def draw(
    images: Path, references: Path, masks: Path, cases: dict[str, Any], path: Path, most: int = 4
) -> None:
    """Draw the slice with the most foreground of the best, the worst and cases between.

    Args:
        images: folder of the scans, ``<case>_0000.nii.gz``.
        references: folder of the reference masks.
        masks: folder of the predicted masks.
        cases: ``cases`` of an evaluation.
        path: PNG to write.
        most: how many cases to draw.
    """
    ranked = sorted(
        (case for case in cases if cases[case]["dice"] is not None),
        key=lambda case: cases[case]["dice"],
    )
    chosen = [ranked[i] for i in np.unique(np.linspace(0, len(ranked) - 1, most).astype(int))]
    slices = []
    for case in reversed(chosen):
        scan = read_image([images / f"{case}_0000.nii.gz"])
        grid = frame_grid(scan, 2, None)
        image, reference, prediction = (
            to_frames(array, grid, order=0)
            for array in (
                scan.array[..., 0],
                read_labels(references / f"{case}.nii.gz").array,
                read_labels(masks / f"{case}.nii.gz").array,
            )
        )
        either = reference if reference.any() else prediction
        shown = int(np.argmax((either > 0).sum(axis=(1, 2))))
        title = f"{case}  Dice {cases[case]['dice']:.3f}"
        # From (anterior, superior) axes to head up, front to the left, as radiologists read it.
        upright = [array[shown].T[::-1, ::-1] for array in (image, reference, prediction)]
        slices.append((title, *upright))
    overlay(path, slices)
