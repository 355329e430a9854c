"""How fast each way to train reaches Dice 0.85: SGD, the enhanced SGD, pre-training, AdamW.

penn prepare $PENN_DATA/spine_t1 prepared/spine_t1 --merge-labels
penn study configs/studies/efficiency.py --data prepared/spine_t1 --out studies/efficiency

A fair race: each arm's learning rate is the best of a small sweep, run with another seed on other
cases (a part of the training scans), and the sweep is in the table. Budgets are in steps, so that a
repeat on the same machine gives the same table. 28 runs of 600 steps; further processes share them
(``--resume``).
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "spine_t1.py"))["config"]
# Two processes cut patches: one thread cannot keep up with an accelerator.
COURSE = replace(CONFIG.train, max_seconds=0.0, max_steps=600, validate_every=10, workers=2)
ENHANCED = replace(CONFIG, train=COURSE)
MASKED = replace(
    ENHANCED,
    name="masked",
    optim=replace(CONFIG.optim, learning_rate=0.05),
    train=replace(COURSE, validate_every=0),
)
PLAIN = replace(
    CONFIG.optim,
    momentum=0.0,
    nesterov=False,
    warmup=0.0,
    weight_decay=0.0,
    clip=0.0,
    centralise=False,
    average=0.0,
)
ADAMW = replace(CONFIG.optim, name="adamw", weight_decay=0.01, centralise=False)
RATES = (0.02, 0.05, 0.1)

study = Study(
    name="efficiency",
    title="Steps and seconds to Dice 0.85 on spine_t1",
    arms=(
        Arm(
            "sgd",
            replace(ENHANCED, optim=PLAIN),
            "plain SGD, the schedule alone",
            learning_rates=(0.1, 0.3, 1.0),
        ),
        Arm(
            "enhanced",
            ENHANCED,
            "the enhanced SGD",
            baseline="sgd",
            learning_rates=RATES,
        ),
        Arm(
            "enhanced-pre-trained",
            ENHANCED,
            "the enhanced SGD after 600 steps of restoring masked blocks",
            pretrain=MASKED,
            baseline="sgd",
            learning_rates=RATES,
        ),
        Arm(
            "adamw",
            replace(ENHANCED, optim=ADAMW),
            "AdamW, clip, warm-up, averaged weights",
            baseline="sgd",
            learning_rates=(0.0005, 0.001, 0.002),
        ),
    ),
    target_dice=0.85,
)
