"""What self-training is worth with 2, 4, 8 and 16 labelled spines; the rest are unlabelled.

penn prepare $PENN_DATA/spine_t1 prepared/spine_t1 --merge-labels
penn study configs/studies/labels.py --data prepared/spine_t1 --out studies/labels

36 × 150 steps, so that the table repeats on the same machine. How restoring masked blocks does
with few labels, ``tried_spines.py`` says.
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Study

CONFIG = run_path(str(Path(__file__).parents[1] / "spine_t1.py"))["config"]
BASE = replace(CONFIG, train=replace(CONFIG.train, max_seconds=0.0, max_steps=150))
TAUGHT = replace(BASE, name="taught")


def arms(labelled: int) -> tuple[Arm, ...]:
    config = replace(BASE, train=replace(BASE.train, labelled=labelled))
    scratch = f"{labelled}-scratch"
    return (
        Arm(scratch, config, f"{labelled} labelled spines, newly drawn weights"),
        Arm(
            f"{labelled}-self-trained",
            config,
            "the same, after as many steps on the first arm's labels of all training scans",
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
