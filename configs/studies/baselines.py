"""PENN beside networks of the kinds that came before it: same code, data, optimiser and budget.

penn prepare $PENN_DATA/spine_t1 prepared/spine_t1 --merge-labels
penn study configs/studies/baselines.py --data prepared/spine_t1 --out studies/baselines

Twelve runs of 300 s: an hour and a quarter.
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "spine_t1.py"))["config"]


def arm(name, description, **model):
    config = replace(CONFIG, model=replace(CONFIG.model, **model))
    return Arm(name, config, description, baseline=None if name == "penn" else "penn")


study = Study(
    name="baselines",
    title="Networks of the same budget, 300 s",
    note="All have the learning rate of configs/spine_t1.py, which was chosen for PENN.",
    arms=(
        arm("penn", "stem of 4, two convolutions a stage, skips by concatenation"),
        arm("fcn", "FCN-like: one convolution a stage, skips by addition", skip="add", blocks=1),
        arm("segnet", "SegNet-like: a deconvolution network without skips", skip="none"),
        arm("u-net", "U-Net: no stem, 16 to 256 features", stem=1, channels=(16, 32, 64, 128, 256)),
    ),
)
