"""Does pre-training pay with four labelled spines? The other training scans are unlabelled.

penn prepare $PENN_DATA/spine_t1 prepared/spine_t1 --merge-labels
penn study configs/studies/four_spines.py --data prepared/spine_t1 --out studies/four_spines

Each seed draws its own four spines, the same for all arms. 12 × 300 s, and 3 × 400 steps on the
synthetic spines of ``efficiency.py``. Self-training was chosen by ``tried_spines.py``, with a
teacher that had not seen synthetic spines.
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "spine_t1.py"))["config"]
SPINES = run_path(str(Path(__file__).with_name("efficiency.py")))["SPINES"]
BASE = replace(CONFIG, train=replace(CONFIG.train, labelled=4))
TAUGHT = replace(CONFIG, name="taught")

study = Study(
    name="four_spines",
    title="Four labelled spines, 300 s of training",
    arms=(
        Arm("scratch", BASE, "newly drawn weights"),
        Arm(
            "synthetic",
            BASE,
            "400 steps on synthetic spines first",
            pretrain=SPINES,
            phantoms=60,
            baseline="scratch",
        ),
        Arm(
            "self-trained",
            BASE,
            "300 s on what the second arm's network says of all training scans, first",
            pretrain=TAUGHT,
            teacher="synthetic",
            baseline="scratch",
        ),
    ),
)
