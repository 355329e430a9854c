"""Does pre-training pay with eighty labelled slices? The other training slices are unlabelled.

penn prepare $PENN_DATA/tumour_t1gd prepared/tumour_t1gd
penn study configs/studies/eighty_tumours.py --data prepared/tumour_t1gd --out studies/eighty

Each seed draws its own eighty slices, the same for both arms. About 45 minutes.
"""

from dataclasses import replace

from penn_jax.config import Arm, Config, ModelConfig, OptimConfig, PatchConfig, Study, TrainConfig

BASE = Config(
    name="tumour_t1gd",
    patches=PatchConfig(
        size=(256, 256), rotation_degrees=30.0, scaling=1.3, stretch=1.1, flip=True
    ),
    model=ModelConfig(stem=4, channels=(32, 64, 128, 256)),
    optim=OptimConfig(learning_rate=0.1, average=0.995),
    train=TrainConfig(batch_size=4, max_steps=0, max_seconds=300.0, labelled=80),
)
MASKED = replace(BASE, name="masked", train=replace(BASE.train, labelled=0))

study = Study(
    name="eighty_tumours",
    title="Eighty labelled tumour slices, 300 s of training",
    arms=(
        Arm("scratch", BASE, "newly drawn weights"),
        Arm("pre-trained", BASE, "300 s of restoring masked blocks first", MASKED, "scratch"),
    ),
)
