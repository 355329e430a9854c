"""The run directory: strict configs, a log that is cut where a resumed run goes on."""

import json

import numpy as np
import pytest

from penn_jax import run
from penn_jax.config import Config, TrainConfig, config_hash, to_json
from penn_jax.types import InputError

CARD = {"channels": ["T1"], "labels": {"background": 0, "tumour": 1}, "dimensions": 2}


def test_config_comes_back_equal(tmp_path):
    config = Config(train=TrainConfig(batch_size=3, max_seconds=1.5))
    run.create(tmp_path / "run", config, CARD, resume=False)
    assert run.read_config(tmp_path / "run") == config
    environment = run.read_environment(tmp_path / "run")
    assert environment["labels"] == CARD["labels"]
    assert environment["versions"]["jax"]


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
    run.create(folder, Config(), CARD, resume=False)
    with pytest.raises(InputError, match="holds a run"):
        run.create(folder, Config(), CARD, resume=False)
    with pytest.raises(InputError, match="another config"):
        run.create(folder, Config(name="other"), CARD, resume=True)
    run.create(folder, Config(), CARD, resume=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        run.create(tmp_path / "notes", Config(), CARD, resume=False)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_log_drops_what_the_resumed_run_writes_again(tmp_path):
    log = run.Log(tmp_path, 0)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1.0 / step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    log = run.Log(tmp_path, 20)
    log.write({"step": 30, "loss": 0.5})
    log.close()
    points = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [10, 20, 30]
    assert points[-1]["loss"] == 0.5


def test_hash_depends_on_every_value_and_on_nothing_else():
    assert config_hash(Config()) == config_hash(Config())
    assert config_hash(Config()) != config_hash(Config(train=TrainConfig(seed=1)))


def test_not_a_run_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        run.load_model(tmp_path)


def test_only_heads_are_left_out_of_an_initialisation(tmp_path, monkeypatch):
    fresh = {"params": {"conv": {"kernel": np.zeros((2, 3))}, "head_0": {"kernel": np.zeros(4)}}}
    other = {"params": {"conv": {"kernel": np.ones((2, 3))}, "head_0": {"kernel": np.ones(9)}}}
    monkeypatch.setattr(run, "load_model", lambda _: (Config(), {}, other))
    variables, pretrained = run.load_all_but_heads(tmp_path, fresh)
    np.testing.assert_array_equal(variables["params"]["conv"]["kernel"], np.ones((2, 3)))
    np.testing.assert_array_equal(variables["params"]["head_0"]["kernel"], np.zeros(4))
    assert pretrained == {"conv": {"kernel": True}, "head_0": {"kernel": False}}
    other["params"]["conv"]["kernel"] = np.ones((2, 5))
    with pytest.raises(InputError, match=r"conv.*\(2, 5\).*\(2, 3\)"):
        run.load_all_but_heads(tmp_path, fresh)
