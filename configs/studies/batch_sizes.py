"""Whether larger batches learn as much from the same patches: the rate kept, and scaled.

penn prepare $PENN_DATA/spine_t1 prepared/spine_t1 --merge-labels
penn study configs/studies/batch_sizes.py --data prepared/spine_t1 --out studies/batch_sizes

Every arm sees the same 2,560 patches of 128×128, in the same order: 320 steps of 8, 160 of 16, 80
of 32 or 40 of 64. Rule and reading of the table: docs/training.md. Budgets in steps; 21 runs of
about a minute on two CPU cores; further processes share them (``--resume``).
"""

from dataclasses import replace
from math import sqrt
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "spine_t1.py"))["config"]
SMALL = replace(CONFIG, patches=replace(CONFIG.patches, size=(128, 128)))
BATCH, STEPS = CONFIG.train.batch_size, 320


def arm(name: str, times: int, rate: float, description: str, baseline: str | None) -> Arm:
    """Batches as many times as large, and as many times fewer; the rate of batch 8 times ``rate``.

    In all arms a tenth of the patches warms up, and the average reaches over as many patches.
    """
    optim = replace(
        CONFIG.optim,
        learning_rate=CONFIG.optim.learning_rate * rate,
        warmup=0.1,
        average=CONFIG.optim.average**times,
    )
    train = replace(
        CONFIG.train, batch_size=BATCH * times, max_steps=STEPS // times, max_seconds=0.0
    )
    return Arm(name, replace(SMALL, optim=optim, train=train), description, baseline=baseline)


study = Study(
    name="batch_sizes",
    title="The same patches in larger batches on spine_t1",
    arms=(
        arm("8", 1, 1, "320 steps of 8 patches, rate 0.02", None),
        arm("16-linear", 2, 2, "160 steps of 16, twice the rate", "8"),
        arm("32-kept", 4, 1, "80 steps of 32, the same rate", "8"),
        arm("32-linear", 4, 4, "80 steps of 32, 4 times the rate", "8"),
        arm("64-kept", 8, 1, "40 steps of 64, the same rate", "8"),
        arm("64-root", 8, sqrt(8), "40 steps of 64, √8 times the rate", "8"),
        arm("64-linear", 8, 8, "40 steps of 64, 8 times the rate", "8"),
    ),
)
