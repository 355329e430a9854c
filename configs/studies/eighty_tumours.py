"""Does pre-training pay with eighty labelled tumour slices, the other training slices unlabelled?

penn prepare $PENN_DATA/tumour_t1gd prepared/tumour_t1gd
penn study configs/studies/eighty_tumours.py --data prepared/tumour_t1gd \\
    --out studies/eighty_tumours

Each seed draws its own eighty slices, the same for both arms. 9 × 300 s. The way to pre-train
was chosen by ``tried_tumours.py``.
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "tumour_t1gd.py"))["config"]
SHORT = replace(CONFIG, train=replace(CONFIG.train, max_seconds=300.0))
BASE = replace(SHORT, train=replace(SHORT.train, labelled=80))
TAUGHT = replace(SHORT, name="taught")

study = Study(
    name="eighty_tumours",
    title="Eighty labelled tumour slices, 300 s of training",
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
)
