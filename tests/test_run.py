"""The run directory: strict configs and cards, one writer, weights of another run."""

import json
import subprocess
import sys

import pytest

from penn_jax import run
from penn_jax.config import Config, TrainConfig, config_hash, to_json
from penn_jax.types import InputError

CARD = run.ModelCard(
    channels=["T1"],
    labels={"background": 0, "tumour": 1},
    label_values=[0, 1],
    dimensions=2,
    spacing=[1.0, 1.0],
    data_hash="0123",
    split_hash="4567",
    fold=0,
    task="segmentation",
)


def _open(*arguments, **options):
    with run.opened(*arguments, **options):
        pass


def test_config_comes_back_equal(tmp_path):
    config = Config(train=TrainConfig(batch_size=3, max_seconds=1.5))
    _open(tmp_path / "run", config, CARD, resume=False)
    assert run.read_config(tmp_path / "run") == config
    assert run.read_card(tmp_path / "run") == CARD
    assert run.read_json(tmp_path / "run" / "environment.json")["versions"]["jax"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["model"].update(depth=3), "model.depth"),
        (lambda c: c["model"].update(stem=3), "model.stem"),
        (lambda c: c["patches"].update(size=[96]), "patches.size"),
        (lambda c: c["optim"].update(learning_rate=-1.0), "optim.learning_rate"),
        (lambda c: c["optim"].update(learning_rate="fast"), "optim.learning_rate"),
        (lambda c: c.update(optimizer={}), "optimizer"),
    ],
)
def test_config_that_does_not_fit_is_named(tmp_path, change, said):
    values = to_json(Config())
    change(values)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=said.replace(".", r"\.")):
        run.read_config(tmp_path)


def test_another_run_is_not_overwritten(tmp_path):
    folder = tmp_path / "run"
    _open(folder, Config(), CARD, resume=False)
    with pytest.raises(InputError, match="holds a run"):
        _open(folder, Config(), CARD, resume=False)
    with pytest.raises(InputError, match="another config"):
        _open(folder, Config(name="other"), CARD, resume=True)
    _open(folder, Config(), CARD, resume=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        _open(tmp_path / "notes", Config(), CARD, resume=False)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_what_a_run_killed_in_its_first_moments_leaves_is_no_obstacle(tmp_path):
    (tmp_path / "environment.json").write_text("{")
    (tmp_path / ".config.json.partial").touch()
    (tmp_path / ".lock").touch()
    _open(tmp_path, Config(), CARD, resume=False)
    assert run.read_card(tmp_path) == CARD


def test_a_run_has_one_writer(tmp_path):
    folder = tmp_path / "run"
    code = (
        "import sys, time; from pathlib import Path; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    _open(folder, Config(), CARD, resume=False)
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / ".lock")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is writing it"):
            _open(folder, Config(), CARD, resume=True)
    finally:
        holder.kill()  # a lock dies with its process, whatever ends it
        holder.communicate()
    _open(folder, Config(), CARD, resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("labels"), "labels"),
        (lambda c: c.update(dimensions=4), "dimensions"),
        (lambda c: c.update(channels="T1"), "channels"),
        (lambda c: c.update(spacing=[1.0, "wide"]), "spacing.1"),
        (lambda c: c.update(task="painting"), "task"),
    ],
)
def test_a_damaged_card_is_named(tmp_path, change, said):
    values = dict(CARD)
    change(values)
    (tmp_path / "environment.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=rf"environment\.json: {said}"):
        run.read_card(tmp_path)


def test_hash_depends_on_every_value_and_on_nothing_else():
    assert config_hash(Config()) == config_hash(Config())
    assert config_hash(Config()) != config_hash(Config(train=TrainConfig(seed=1)))


def test_not_a_run_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        run.load_model(tmp_path)
