"""Does pre-training pay with four labelled spines? The other training scans are unlabelled.

penn prepare $PENN_DATA/spine_t1 prepared/spine_t1 --merge-labels
penn study configs/studies/four_spines.py --data prepared/spine_t1 --out studies/four_spines

Each seed draws its own four spines, the same for both arms. About 45 minutes.
"""

from dataclasses import replace

from penn_jax.config import Arm, Config, ModelConfig, OptimConfig, PatchConfig, Study, TrainConfig

BASE = Config(
    name="spine_t1",
    patches=PatchConfig(size=(224, 224), neighbours=1),
    model=ModelConfig(stem=4, channels=(48, 96, 192, 256)),
    optim=OptimConfig(average=0.98),
    train=TrainConfig(batch_size=8, max_steps=0, max_seconds=300.0, labelled=4),
)
MASKED = replace(
    BASE,
    name="masked",
    optim=replace(BASE.optim, learning_rate=0.05),
    train=replace(BASE.train, labelled=0),
)

study = Study(
    name="four_spines",
    title="Four labelled spines, 300 s of training",
    arms=(
        Arm("scratch", BASE, "newly drawn weights"),
        Arm("pre-trained", BASE, "300 s of restoring masked blocks first", MASKED, "scratch"),
    ),
)
