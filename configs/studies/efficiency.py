"""How fast each way to train reaches Dice 0.85: SGD, the enhanced SGD, pre-training, AdamW.

penn prepare $PENN_DATA/spine_t1 prepared/spine_t1 --merge-labels
penn study configs/studies/efficiency.py --data prepared/spine_t1 --out studies/efficiency

A fair race: the same budget, schedule and validations for all, and each arm's learning rate is the
best of a small sweep, run with another seed on other cases (a part of the training scans); the
sweep is in the table. The pre-trained network has learnt to segment the vertebrae of 60 synthetic
spines, which cost no label; of the real scans it has seen none. Its head is drawn anew. How to
pre-train and the momentum were chosen on that part of the training scans too.

Budgets are in steps, so that a repeat on the same machine gives the same table. 24 runs of 120
steps and 4 pre-trainings of 400; further processes share them (``--resume``).
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, PhotometryConfig, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "spine_t1.py"))["config"]
COURSE = replace(CONFIG.train, max_seconds=0.0, max_steps=120, validate_every=5, checkpoint_every=0)
# Of a run as short as this the momentum must not look back on a sixth.
ENHANCED = replace(CONFIG, optim=replace(CONFIG.optim, momentum=0.9), train=COURSE)
SPINES = replace(
    ENHANCED,
    name="spines",
    optim=replace(CONFIG.optim, learning_rate=0.1),
    photometry=PhotometryConfig(gamma=0.5, noise=0.2, bias_field=0.6),
    train=replace(COURSE, max_steps=400, validate_every=0),
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
RATES = (0.1, 0.2, 0.4)

study = Study(
    name="efficiency",
    title="Steps and seconds to Dice 0.85 on spine_t1",
    arms=(
        Arm(
            "sgd",
            replace(ENHANCED, optim=PLAIN),
            "plain SGD, the schedule alone",
            learning_rates=(0.5, 1.0, 2.0),
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
            "the enhanced SGD after 400 steps on synthetic spines",
            pretrain=SPINES,
            phantoms=60,
            baseline="sgd",
            learning_rates=(0.05, 0.1, 0.2),
        ),
        Arm(
            "adamw",
            replace(ENHANCED, optim=ADAMW),
            "AdamW, clip, warm-up, averaged weights",
            baseline="sgd",
            learning_rates=(0.001, 0.002, 0.004),
        ),
    ),
    target_dice=0.85,
)
