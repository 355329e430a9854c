"""Does pre-training pay with four labelled spines? The other training scans are unlabelled.

penn prepare $PENN_DATA/spine_t1 prepared/spine_t1 --merge-labels
penn study configs/studies/four_spines.py --data prepared/spine_t1 --out studies/four_spines

Each seed draws its own four spines, the same for both arms. 24 × 300 s. The way to pre-train was
chosen by ``tried_spines.py``; seeds 0 to 2 belong to an earlier study of these cases.
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "spine_t1.py"))["config"]
BASE = replace(CONFIG, train=replace(CONFIG.train, labelled=4))
TAUGHT = replace(CONFIG, name="taught")

study = Study(
    name="four_spines",
    title="Four labelled spines, 300 s of training",
    arms=(
        Arm("scratch", BASE, "newly drawn weights"),
        Arm(
            "self-trained",
            BASE,
            "300 s on what the first arm's network says of all training scans, first",
            pretrain=TAUGHT,
            teacher="scratch",
            baseline="scratch",
        ),
    ),
    seeds=(3, 4, 5, 6, 7, 8, 9, 10),
)
