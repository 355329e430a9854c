"""What was tried with four labelled spines before four_spines.py; budgets in steps.

python benchmarks/inner_split.py $PENN_DATA/spine_t1 inner/spine_t1
penn prepare inner/spine_t1 prepared/inner_spine_t1 --merge-labels
penn study configs/studies/tried_spines.py --data prepared/inner_spine_t1 --out studies/tried_spines

The choice falls on a split inside the training scans, so that it has seen no validation case of the
study it is made for. 9 pre-trainings and 21 runs; further processes share them (``--resume``).
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from penn_jax.config import Arm, Config, Study


def tried(config: Config, labelled: int, steps: int) -> tuple[Arm, ...]:
    """Self-training and restoration, short and long, with full and a quarter of the rate."""

    def course(config: Config, name: str, budget: int, **other) -> Config:
        # Two processes cut patches: one thread cannot keep up with an accelerator.
        train = replace(config.train, max_seconds=0.0, max_steps=budget, workers=2, **other)
        return replace(config, name=name, train=train)

    def rated(config: Config, rate: float) -> Config:
        return replace(config, optim=replace(config.optim, learning_rate=rate))

    base = course(config, config.name, steps, labelled=labelled)
    gentle = rated(base, config.optim.learning_rate / 4)
    taught, longer = course(config, "taught", steps), course(config, "longer", 2 * steps)
    masked = rated(course(config, "masked", 2 * steps), 0.05)

    def self_trained(name: str, then: Config, first: Config, description: str) -> Arm:
        return Arm(name, then, description, first, teacher="scratch", baseline="scratch")

    return (
        Arm("scratch", base, "newly drawn weights"),
        self_trained("taught", base, taught, f"{steps} steps of self-training first"),
        self_trained("taught-gentle", gentle, taught, "the same, then a quarter of the rate"),
        self_trained("longer", base, longer, f"{2 * steps} steps of self-training first"),
        self_trained("longer-gentle", gentle, longer, "the same, then a quarter of the rate"),
        Arm("restored", base, f"{2 * steps} steps of restoring first", masked, baseline="scratch"),
        Arm(
            "scratch-3x",
            course(config, config.name, 3 * steps, labelled=labelled),
            "newly drawn weights, as many steps as teacher, pre-training and training together",
        ),
    )


CONFIG = run_path(str(Path(__file__).parents[1] / "spine_t1.py"))["config"]

study = Study(
    name="tried_spines",
    title="Ways to pre-train for four labelled spines, on an inner split",
    arms=tried(CONFIG, labelled=4, steps=400),
)
