"""The six metrics of the paper, on another data set.

penn prepare $PENN_DATA/tumour_t1gd prepared/tumour_t1gd
penn study configs/studies/paper.py --data prepared/tumour_t1gd --out studies/paper

Three pre-trainings of 500 steps and six runs of 1,500.
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "tumour_t1gd.py"))["config"]
BASE = replace(CONFIG, train=replace(CONFIG.train, max_seconds=0.0, max_steps=1500))
MASKED = replace(CONFIG, name="masked", train=replace(CONFIG.train, max_seconds=0.0, max_steps=500))

study = Study(
    name="paper",
    title="Six metrics of brain tumours in gadolinium-enhanced T1",
    note="Chen et al. (2024) report precision 90.6, recall 91.1, accuracy 93.2, F1 91.3, IoU 83.8 "
    "and Dice 91.1 % on private scans of spinal tumours. These are other data, another organ and "
    "other cases: the figures stand beside each other, they do not compare.",
    arms=(
        Arm("scratch", BASE, "enhanced SGD"),
        Arm(
            "restored",
            BASE,
            "after masked blocks, enhanced SGD",
            pretrain=MASKED,
            baseline="scratch",
        ),
    ),
)
