"""What pre-training is worth with 2, 4, 8 and 16 labelled spines; the rest are unlabelled.

penn prepare $PENN_DATA/spine_t1 prepared/spine_t1 --merge-labels
penn study configs/studies/labels.py --data prepared/spine_t1 --out studies/labels

15 pre-trainings and 36 runs of 300 s: about four and a half hours.
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "spine_t1.py"))["config"]
MASKED = replace(CONFIG, name="masked", optim=replace(CONFIG.optim, learning_rate=0.05))
TAUGHT = replace(CONFIG, name="taught")


def arms(labelled: int) -> tuple[Arm, ...]:
    config = replace(CONFIG, train=replace(CONFIG.train, labelled=labelled))
    scratch = f"{labelled}-scratch"
    return (
        Arm(scratch, config, f"{labelled} labelled spines, newly drawn weights"),
        Arm(
            f"{labelled}-restored",
            config,
            "the same, after restoring masked blocks",
            pretrain=MASKED,
            baseline=scratch,
        ),
        Arm(
            f"{labelled}-self-trained",
            config,
            "the same, after learning what the first arm's network says of all training scans",
            pretrain=TAUGHT,
            teacher=scratch,
            baseline=scratch,
        ),
    )


study = Study(
    name="labels",
    title="Pre-training and the number of labelled spines",
    arms=sum((arms(labelled) for labelled in (2, 4, 8, 16)), ()),
)
