"""What each addition of the enhanced SGD does on its own: steps and seconds to Dice 0.85.

penn prepare $PENN_DATA/spine_t1 prepared/spine_t1 --merge-labels
penn study configs/studies/additions.py --data prepared/spine_t1 --out studies/additions

Each arm is SGD with Nesterov momentum and one addition, its learning rate the best of a small sweep
as in ``efficiency.py``. 36 runs of 120 steps; further processes share them (``--resume``).
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

EFFICIENCY = run_path(str(Path(__file__).with_name("efficiency.py")))
MOMENTUM = replace(EFFICIENCY["PLAIN"], momentum=0.9, nesterov=True)


def arm(name, description, baseline: str | None = "momentum", **addition):
    config = replace(EFFICIENCY["ENHANCED"], optim=replace(MOMENTUM, **addition))
    return Arm(name, config, description, baseline=baseline, learning_rates=EFFICIENCY["RATES"])


study = Study(
    name="additions",
    title="Additions to SGD with momentum on spine_t1",
    arms=(
        arm("momentum", "SGD with Nesterov momentum", baseline=None),
        arm("warm-up", "+ warm-up", warmup=0.03),
        arm("decay", "+ weight decay", weight_decay=5e-4),
        arm("clip", "+ clipped gradient", clip=5.0),
        arm("centralise", "+ centralised gradient", centralise=True),
        arm("average", "+ averaged weights", average=0.98),
    ),
    target_dice=0.85,
)
