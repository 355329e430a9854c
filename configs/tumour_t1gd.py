"""Tumours in gadolinium-enhanced T1 slices (Cheng 2017), whole slices.

penn prepare $PENN_DATA/tumour_t1gd prepared/tumour_t1gd
penn train configs/tumour_t1gd.py --data prepared/tumour_t1gd --out runs/tumour_t1gd

Measured 2026-11-23, two AMD EPYC cores, seed 0: 900 s of training (1.7 GiB), 7,263 steps, mean Dice
0.580 on the 270 validation slices.
"""

from penn_jax.config import Config, ModelConfig, OptimConfig, PatchConfig, TrainConfig

config = Config(
    name="tumour_t1gd",
    patches=PatchConfig(
        size=(256, 256), rotation_degrees=30.0, scaling=1.3, stretch=1.1, flip=True
    ),
    model=ModelConfig(stem=4, channels=(32, 64, 128, 256)),
    optim=OptimConfig(learning_rate=0.1, average=0.995),
    train=TrainConfig(batch_size=4, max_steps=0, max_seconds=900.0),
)
