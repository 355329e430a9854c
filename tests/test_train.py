"""What a run checks before it starts, and the pieces it is composed of."""

import json
import re
import time
from contextlib import contextmanager
from dataclasses import replace

import jax
import numpy as np
import pytest
from made_stores import write_store

from penn_jax import loop
from penn_jax import train as module
from penn_jax.config import (
    Config,
    ModelConfig,
    PatchConfig,
    PredictConfig,
    TrainConfig,
)
from penn_jax.data.store import Store
from penn_jax.engine import probability_forward
from penn_jax.loop import budget_used
from penn_jax.model.network import Network, initialise
from penn_jax.optim.checkpoint import Checkpoints
from penn_jax.progress import warn
from penn_jax.run import load_model
from penn_jax.task import check_fit
from penn_jax.train import labelled_cases, labelled_subset, train, validator
from penn_jax.types import InputError

CONFIG = Config(
    patches=PatchConfig(size=(16, 16)), model=ModelConfig(stem=2, channels=(4, 4), blocks=1)
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    generator, cases = np.random.default_rng(0), {}
    for name in ("a", "b", "c"):
        labels = np.zeros((2, 18, 20), np.uint8)
        labels[:, 5:9, 5:9] = 1
        image = generator.normal(size=(2, 18, 20, 1)).astype(np.float32)
        cases[name] = (image, None if name == "c" else labels)
    write_store(folder, cases, splits=[{"train": ["a", "c"], "validation": ["b"]}])
    return Store(folder)


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("patches", {"size": (16, 16, 16)}, "3 axes, expected 2"),
        ("patches", {"size": (16, 18)}, "multiples of 4"),
        ("train", {"max_steps": 0}, "a budget"),
        ("model", {"residual": True}, "two blocks"),
        ("train", {"batch_size": 6}, "multiple of the 4 devices"),
        ("train", {"batch_size": 12, "accumulate": 2}, "4 devices × 2 of --train.accumulate"),
    ],
)
def test_a_config_that_does_not_fit_the_store_is_refused(store, section, values, said):
    config = replace(CONFIG, **{section: replace(getattr(CONFIG, section), **values)})
    with pytest.raises(InputError, match=said):
        check_fit(config, store)
    check_fit(CONFIG, store)


def test_only_labelled_cases_of_the_split_are_used(store):
    assert labelled_cases(store, 0) == (["a"], ["b"])
    with pytest.raises(InputError, match="has 1 splits"):
        labelled_cases(store, 1)


def test_the_budget_is_whichever_is_further():
    steps = replace(CONFIG, train=TrainConfig(max_steps=100))
    assert budget_used(steps.train, 25, 1e9) == 0.25
    seconds = replace(CONFIG, train=TrainConfig(max_steps=0, max_seconds=10.0))
    assert budget_used(seconds.train, 10**6, 5.0) == 0.5
    both = replace(CONFIG, train=TrainConfig(max_steps=100, max_seconds=10.0))
    assert budget_used(both.train, 90, 5.0) == 0.9
    assert budget_used(both.train, 10, 20.0) == 1.0


def test_validation_scores_whole_cases(store):
    labels = {"background": 0, "tumour": 1}
    card = {"labels": labels, "channels": ["T1"], "dimensions": 2, "task": "segmentation"}
    network = Network(CONFIG.model, 2)
    variables = initialise(network, jax.random.key(0), 1, 2)
    # A head that says foreground everywhere: 32 of 720 voxels are, in a case of 2 × 18 × 20.
    head = variables["params"]["head_0"]
    head["kernel"], head["bias"] = head["kernel"] * 0, head["bias"].at[1].set(5.0)
    values = validator(store, ["b"], CONFIG, card)(variables)
    assert values["dice"] == pytest.approx(2 * 32 / (32 + 720))
    assert values["pooled_precision"] == pytest.approx(32 / 720)
    assert values["pooled_recall"] == 1.0


def test_a_case_over_the_budget_is_told_before_the_training(store):
    labels = {"background": 0, "tumour": 1}
    card = {"labels": labels, "channels": ["T1"], "dimensions": 2, "task": "segmentation"}
    group = replace(CONFIG.model, norm="group")
    small = replace(CONFIG, model=group, predict=PredictConfig(memory_budget=1e-6))
    with pytest.raises(InputError, match="memory-budget while training"):
        validator(store, ["b"], small, card)
    validator(store, ["b"], replace(CONFIG, model=group), card)


def test_validation_of_odd_frame_sizes_compiles_few_programs(tmp_path, monkeypatch):
    traced, apply = [], Network.apply

    def counting(self, variables, tiles, *more, **options):
        traced.append(tiles.shape)  # runs only while a program is traced
        return apply(self, variables, tiles, *more, **options)

    generator, cases = np.random.default_rng(0), {}
    for name, size in [("a", (57, 60)), ("b", (58, 59)), ("c", (55, 55)), ("d", (51, 58))]:
        image = generator.normal(size=(4, *size, 1)).astype(np.float32)
        cases[name] = (image, np.ones((4, *size), np.uint8))
    write_store(tmp_path, cases, splits=[{"train": ["a"], "validation": ["b"]}])
    labels = {"background": 0, "tumour": 1}
    card = {"labels": labels, "channels": ["T1"], "dimensions": 2, "task": "segmentation"}
    variables = initialise(Network(CONFIG.model, 2), jax.random.key(0), 1, 2)
    validate = validator(Store(tmp_path), ["a", "b", "c", "d"], CONFIG, card)
    monkeypatch.setattr(Network, "apply", counting)
    assert validate(variables) == validate(variables)
    # Stride 4: frames of 52 to 60 voxels are evaluated in arrays of 56 and 64.
    assert len(traced) <= 3
    assert {size for shape in traced for size in shape[1:3]} <= {56, 64}


def test_mirrored_prediction_is_equivariant_to_flips():
    variables = initialise(Network(CONFIG.model, 2), jax.random.key(1), 1, 2)
    x = np.random.default_rng(0).normal(size=(1, 16, 24, 1)).astype(np.float32)
    forward = probability_forward(CONFIG, 2, variables, mirror=True)
    plain = probability_forward(CONFIG, 2, variables, mirror=False)
    y = forward(x)
    np.testing.assert_allclose(y.sum(-1), 1.0, atol=1e-5)
    for axes in ((1,), (2,), (1, 2)):
        np.testing.assert_allclose(forward(np.flip(x, axes)), np.flip(y, axes), atol=1e-6)
    assert np.abs(plain(np.flip(x, 1)) - np.flip(plain(x), 1)).max() > 1e-3
    hand = np.mean(
        [np.flip(plain(np.flip(x, axes)), axes) for axes in ((), (1,), (2,), (1, 2))], axis=0
    )
    np.testing.assert_allclose(y, hand, atol=1e-6)


def test_labelled_subsets_are_nested_and_drawn_by_the_seed():
    names = [f"case{i:02d}" for i in range(20)]
    chosen = [set(labelled_subset(names, TrainConfig(seed=3, labelled=n))) for n in (2, 4, 8)]
    assert [len(part) for part in chosen] == [2, 4, 8]
    assert chosen[0] < chosen[1] < chosen[2]
    assert chosen[1] != set(labelled_subset(names, TrainConfig(seed=4, labelled=4)))
    assert labelled_subset(names, TrainConfig()) == names
    # Whether others are there does not decide between two of them.
    fewer = [name for name in names if name not in sorted(chosen[0])[:1]]
    assert set(labelled_subset(fewer, TrainConfig(seed=3, labelled=3))) <= chosen[1]
    with pytest.raises(InputError, match=r"--train.labelled: 21, expected at most the 20"):
        labelled_subset(names, TrainConfig(labelled=21))


def test_a_run_killed_before_its_first_checkpoint_keeps_the_weights_it_starts_from(
    store, tmp_path, monkeypatch
):
    config = replace(CONFIG, train=replace(CONFIG.train, max_steps=1, batch_size=4))
    train(config, store, tmp_path / "first", progress=False)
    begun = []

    def killed(config, out, data, cases, objective, variables, *rest):
        Checkpoints(out / "checkpoints", warn)  # what fit makes before its first step
        begun.append(jax.tree.leaves(variables["params"]["conv_0"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit", killed)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train(config, store, tmp_path / "run", tmp_path / "first", resume, progress=False)
    loaded = jax.tree.leaves(load_model(tmp_path / "first")[2]["params"]["conv_0"])
    for leaves in begun:
        for leaf, expected in zip(leaves, loaded, strict=True):
            np.testing.assert_array_equal(leaf, expected)


def test_compiling_is_no_training_time(store, tmp_path, monkeypatch):
    compile_step = loop.compile_step

    def slowly(*arguments, **options):
        parallel = compile_step(*arguments, **options)

        def ahead(state, batch):
            time.sleep(5)
            return parallel.ahead(state, batch)

        return parallel._replace(ahead=ahead)

    monkeypatch.setattr(loop, "compile_step", slowly)
    config = replace(CONFIG, train=replace(CONFIG.train, max_steps=2, batch_size=4))
    result = train(config, store, tmp_path / "run", progress=False)
    assert result["seconds"] < 5
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["compiling"] > 5


def test_the_progress_line_tells_rate_loss_and_the_last_dice(store, tmp_path, monkeypatch):
    shown = []

    class Recorder:
        def update(self, share, note):
            shown.append((round(3 * share), note))

    @contextmanager
    def recorded(title, enabled):
        yield Recorder()

    monkeypatch.setattr("penn_jax.loop.bar", recorded)
    course = TrainConfig(batch_size=4, max_steps=3, validate_every=2, log_every=1)
    result = train(replace(CONFIG, train=course), store, tmp_path / "run", progress=False)
    pace, dice = r"\d+ patches/s  loss \d\.\d{3}", r"  validation Dice 0\.\d{4}"
    expected = [(1, pace), (2, pace), (2, pace + dice), (3, pace + dice), (3, pace + dice)]
    assert [step for step, _ in shown] == [step for step, _ in expected]
    for (_, note), (_, pattern) in zip(shown, expected, strict=True):
        assert re.fullmatch(pattern, note)
    assert shown[-1][1].endswith(f"{result['dice']:.4f}")
