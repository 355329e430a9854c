"""What pre-training is worth with 2, 4, 8 and 16 labelled spines; the rest are unlabelled.

penn prepare $PENN_DATA/spine_t1 prepared/spine_t1 --merge-labels
penn study configs/studies/labels.py --data prepared/spine_t1 --out studies/labels

Three pre-trainings and 24 runs of 300 s: about two and a half hours.
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "spine_t1.py"))["config"]
MASKED = replace(CONFIG, name="masked", optim=replace(CONFIG.optim, learning_rate=0.05))


def arms(labelled: int) -> tuple[Arm, Arm]:
    config = replace(CONFIG, train=replace(CONFIG.train, labelled=labelled))
    scratch = f"{labelled}-scratch"
    return (
        Arm(scratch, config, f"{labelled} labelled spines, newly drawn weights"),
        Arm(f"{labelled}-pre-trained", config, f"{labelled}, after masked blocks", MASKED, scratch),
    )


study = Study(
    name="labels",
    title="Pre-training and the number of labelled spines",
    arms=sum((arms(labelled) for labelled in (2, 4, 8, 16)), ()),
)
