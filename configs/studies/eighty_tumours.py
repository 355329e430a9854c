"""Does pre-training pay with eighty labelled slices? The other training slices are unlabelled.

penn prepare $PENN_DATA/tumour_t1gd prepared/tumour_t1gd
penn study configs/studies/eighty_tumours.py --data prepared/tumour_t1gd --out studies/eighty

Each seed draws its own eighty slices, the same for all arms. About two hours.
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "tumour_t1gd.py"))["config"]
SHORT = replace(CONFIG, train=replace(CONFIG.train, max_seconds=300.0))
BASE = replace(SHORT, train=replace(SHORT.train, labelled=80))
LONGER = replace(BASE, train=replace(BASE.train, max_seconds=600.0))
MASKED = replace(SHORT, name="masked")
TAUGHT = replace(SHORT, name="taught")

study = Study(
    name="eighty_tumours",
    title="Eighty labelled tumour slices, 300 s of training",
    arms=(
        Arm("scratch", BASE, "newly drawn weights"),
        Arm("scratch-600", LONGER, "newly drawn weights, twice the time"),
        Arm(
            "restored",
            BASE,
            "300 s of restoring masked blocks first",
            pretrain=MASKED,
            baseline="scratch",
        ),
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
