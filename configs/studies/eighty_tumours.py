"""Does pre-training pay with eighty labelled slices? The other training slices are unlabelled.

penn prepare $PENN_DATA/tumour_t1gd prepared/tumour_t1gd
penn study configs/studies/eighty_tumours.py --data prepared/tumour_t1gd --out studies/eighty

Each seed draws its own eighty slices, the same for both arms. About 45 minutes.
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "tumour_t1gd.py"))["config"]
SHORT = replace(CONFIG, train=replace(CONFIG.train, max_seconds=300.0))
BASE = replace(SHORT, train=replace(SHORT.train, labelled=80))
MASKED = replace(SHORT, name="masked")

study = Study(
    name="eighty_tumours",
    title="Eighty labelled tumour slices, 300 s of training",
    arms=(
        Arm("scratch", BASE, "newly drawn weights"),
        Arm("pre-trained", BASE, "300 s of restoring masked blocks first", MASKED, "scratch"),
    ),
)
