"""How fast each way to train reaches Dice 0.85: SGD, what the enhanced SGD adds, AdamW.

penn prepare $PENN_DATA/spine_t1 prepared/spine_t1 --merge-labels
penn study configs/studies/efficiency.py --data prepared/spine_t1 --out studies/efficiency

A fair race: each arm's learning rate is the best of a small sweep, run with another seed on other
cases (a part of the training scans), and the sweep is in the table. Budgets are in steps, so that a
repeat on the same machine gives the same table. 64 runs of 600 steps: on two cores most of a day;
further processes share it (``--resume``).
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "spine_t1.py"))["config"]
COURSE = replace(CONFIG.train, max_seconds=0.0, max_steps=600, validate_every=10)
ALL = replace(CONFIG, train=COURSE)
MASKED = replace(
    ALL,
    name="masked",
    optim=replace(ALL.optim, learning_rate=0.05),
    train=replace(COURSE, validate_every=0),
)
PLAIN = {
    "momentum": 0.0,
    "nesterov": False,
    "warmup": 0.0,
    "weight_decay": 0.0,
    "clip": 0.0,
    "centralise": False,
    "average": 0.0,
}
RATES = (0.02, 0.05, 0.1)


def arm(name, description, rates, optim, pretrain=None, baseline="sgd"):
    config = replace(ALL, optim=replace(ALL.optim, **optim))
    return Arm(name, config, description, pretrain, baseline=baseline, learning_rates=rates)


MOMENTUM = {**PLAIN, "momentum": 0.95, "nesterov": True}

study = Study(
    name="efficiency",
    title="Steps and seconds to Dice 0.85 on spine_t1",
    arms=(
        arm("sgd", "plain SGD, the schedule alone", (0.1, 0.3, 1.0), PLAIN, baseline=None),
        arm("momentum", "+ Nesterov momentum", RATES, MOMENTUM),
        arm(
            "warm-up",
            "momentum + warm-up",
            RATES,
            {**MOMENTUM, "warmup": 0.03},
            baseline="momentum",
        ),
        arm(
            "decay",
            "momentum + weight decay",
            RATES,
            {**MOMENTUM, "weight_decay": 5e-4},
            baseline="momentum",
        ),
        arm(
            "clip",
            "momentum + clipped gradient",
            RATES,
            {**MOMENTUM, "clip": 5.0},
            baseline="momentum",
        ),
        arm(
            "centralise",
            "momentum + centralised",
            RATES,
            {**MOMENTUM, "centralise": True},
            baseline="momentum",
        ),
        arm(
            "average",
            "momentum + averaged weights",
            RATES,
            {**MOMENTUM, "average": 0.98},
            baseline="momentum",
        ),
        arm("enhanced", "all of these", RATES, {}),
        arm("enhanced-pre-trained", "all, after masked blocks", RATES, {}, MASKED),
        arm(
            "adamw",
            "AdamW, clip, warm-up, averaged weights",
            (0.0005, 0.001, 0.002),
            {"name": "adamw", "weight_decay": 0.01, "centralise": False},
        ),
    ),
    target_dice=0.85,
)
