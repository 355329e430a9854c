"""Self-training: what a taught run learns from, and which teachers it takes."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from made_stores import write_store

from penn_jax import train as module
from penn_jax.config import Config, ModelConfig, PatchConfig, TrainConfig
from penn_jax.model.network import Network, initialise
from penn_jax.run import load_model, read_card, read_config
from penn_jax.teach import load_teacher
from penn_jax.train import segmentation_objective, train
from penn_jax.types import InputError

CONFIG = Config(
    patches=PatchConfig(size=(16, 16)),
    model=ModelConfig(stem=4, channels=(4,), blocks=1),
    train=TrainConfig(batch_size=4, max_steps=2, log_every=1),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    generator, cases = np.random.default_rng(0), {}
    for name in "abc":
        labels = np.zeros((2, 18, 20), np.uint8)
        labels[:, 5:9, 5:9] = 1
        image = (generator.normal(size=labels.shape) + labels)[..., None].astype(np.float32)
        cases[name] = (image, None if name == "c" else labels)
    return write_store(folder, cases, splits=[{"train": ["a", "b", "c"], "validation": []}])


@pytest.fixture(scope="module")
def teacher(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "teacher"
    train(CONFIG, store, out, progress=False)
    return out


def test_the_teachers_labels_stand_for_those_of_the_batch():
    network = Network(CONFIG.model, 2)
    key = jax.random.key(0)
    variables = initialise(network, key, 1, 2)
    generator = np.random.default_rng(1)
    image = generator.normal(size=(4, 16, 16, 1)).astype(np.float32)
    right, wrong = generator.integers(0, 2, (2, 4, 16, 16)).astype(np.uint8)
    batch = {"image": jax.numpy.asarray(image), "index": jax.numpy.arange(4)}

    def loss(label, teach=None):
        objective = segmentation_objective(network, CONFIG, key, teach)
        batch["label"] = jax.numpy.asarray(label)
        return objective(variables["params"], variables["batch_stats"], batch, lambda x: x)[0]

    def teach(seen):
        np.testing.assert_array_equal(seen, image)  # not augmented
        return jax.numpy.asarray(right)

    np.testing.assert_array_equal(loss(wrong, teach), loss(right))
    assert loss(wrong) != loss(right)


def test_a_teacher_gives_the_most_likely_classes_of_its_network(teacher):
    config, card, variables = load_model(teacher)
    image = np.random.default_rng(2).normal(size=(3, 16, 16, 1)).astype(np.float32)
    labels = load_teacher(teacher, CONFIG, card)(jax.numpy.asarray(image))
    logits = np.asarray(jax.jit(Network(config.model, 4).apply)(variables, image)[0])
    # Folding rounds: equal where the two best classes are not equally good.
    best = np.sort(logits, axis=-1)
    sure = best[..., -1] - best[..., -2] > 1e-4
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(labels)[sure], logits.argmax(-1)[sure])
    assert labels.dtype == np.uint8


def test_a_taught_run_sees_unlabelled_cases_and_no_place_of_a_label(
    store, teacher, tmp_path, monkeypatch
):
    seen = {}

    def watched(config, out, store, cases, *rest):
        seen.update(cases=list(cases), config=config)
        return fits(config, out, store, cases, *rest)

    fits = module.fit
    monkeypatch.setattr(module, "fit", watched)
    out = tmp_path / "taught"
    train(CONFIG, store, out, progress=False, teacher=teacher)
    assert seen["cases"] == ["a", "b", "c"]
    assert seen["config"].patches.foreground_fraction == 0.0
    assert read_config(out) == seen["config"]
    assert read_card(out).get("teacher") == str(teacher)
    with pytest.raises(InputError, match="teacher"):
        train(seen["config"], store, out, resume=True, progress=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patches": PatchConfig(size=(16, 16), neighbours=1)}, "takes 0 neighbouring slices"),
        ({"patches": PatchConfig(size=(18, 16))}, r"--patches.size: \(18, 16\), .*multiples of 4"),
    ],
)
def test_a_teacher_of_other_patches_is_refused(teacher, change, said):
    _, card, _ = load_model(teacher)
    with pytest.raises(InputError, match=said):
        load_teacher(teacher, replace(CONFIG, **change), card)
    with pytest.raises(InputError, match="its labels is"):
        load_teacher(teacher, CONFIG, {**card, "labels": {"background": 0, "other": 1}})
    with pytest.raises(InputError, match="another split of these scans"):
        load_teacher(teacher, CONFIG, {**card, "split_hash": "another"})
