"""``penn report`` on runs of random weights."""

import json
import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from made_stores import write_store

from penn_jax.cli import main
from penn_jax.config import Config, ModelConfig, PatchConfig
from penn_jax.data.store import Store
from penn_jax.model.network import Network, initialise
from penn_jax.optim.checkpoint import Checkpoints
from penn_jax.run import opened
from penn_jax.run_report import report, try_report
from penn_jax.task import model_card
from penn_jax.train import labelled_cases, validator
from penn_jax.types import InputError

CONFIG = Config(
    patches=PatchConfig(size=(16, 16)),
    model=ModelConfig(stem=2, channels=(4, 4), blocks=1),
)


def data(folder, dimensions=2, seed=0, validation=("d", "e")):
    generator, cases = np.random.default_rng(seed), {}
    shape = (3, 18, 20) if dimensions == 2 else (1, 18, 20, 14)
    for number, name in enumerate("abcde"):
        labels = np.zeros(shape, np.uint8)
        labels[:, 5:9, 4 + number : 9 + number] = 1
        labels[:, 12:15, 5:9] = 2
        labels[:, 0, 0] = 255
        image = generator.normal(size=shape) + labels * (labels < 255)
        cases[name] = (image[..., None].astype(np.float32), labels)
    split = {
        "train": [name for name in cases if name not in validation],
        "validation": [*validation],
    }
    write_store(folder, cases, splits=[split])
    return folder


def write_run(folder, prepared, seed=0, config=CONFIG):
    """What a run that ended at its first step leaves."""
    store = Store(prepared)
    card = model_card(store, 0, "segmentation")
    network = Network(config.model, len(card["labels"]))
    variables = initialise(network, jax.random.key(seed), 1, card["dimensions"])
    with opened(folder, config, card, resume=False):
        Checkpoints(folder / "checkpoints", print).save(1, variables, variables, {}, 1.0)
    scores = validator(store, labelled_cases(store, 0)[1], config, card)(variables)
    log = [{"step": 1, "seconds": 1.5, "loss": 0.7}, {"step": 1, "seconds": 1.5, **scores}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(point)}\n" for point in log))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store, and two runs on it."""
    folder = tmp_path_factory.mktemp("report")
    store = data(folder / "prepared")
    write_run(folder / "run", store, seed=0)
    write_run(folder / "other", store, seed=1)
    return folder


def test_the_dice_is_the_one_that_validation_finds(made, capsys):
    assert main(["report", str(made / "run"), "--data", str(made / "prepared"), "--quiet"]) == 0
    out = made / "run" / "report.html"
    assert capsys.readouterr().out.strip() == str(out)
    html = out.read_text(encoding="utf-8")
    logged = json.loads((made / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"Mean Dice {100 * logged['dice']:.1f} %" in html
    pooled = re.search(r'<th scope="row">Dice</th><td>([^<]*)</td>', html)
    assert pooled is not None
    assert pooled[1] == f"{100 * logged['pooled_dice']:.1f}"
    first = html
    report(made / "run", made / "prepared", progress=False)
    assert out.read_text(encoding="utf-8") == first  # the same to the last byte


def test_a_baseline_stands_beside_it(made, tmp_path):
    page = report(made / "run", made / "prepared", made / "other", tmp_path / "page.html", False)
    html = page.read_text(encoding="utf-8")
    logged = json.loads((made / "other" / "metrics.jsonl").read_text().splitlines()[-1])
    row = re.search(r'<th scope="row">Dice</th>(.*?)</tr>', html)
    assert row is not None
    cells = re.findall("<td>([^<]*)</td>", row[1])
    # Pooled and mean of the baseline, as it logged them itself.
    assert cells[5:7] == [f"{100 * logged['pooled_dice']:.1f}", f"{100 * logged['dice']:.1f}"]
    assert f"--baseline {made / 'other'}" in html


def test_a_run_in_three_dimensions(tmp_path):
    store = data(tmp_path / "prepared", dimensions=3)
    config = replace(CONFIG, patches=PatchConfig(size=(16, 16, 8)))
    write_run(tmp_path / "run", store, config=config)
    html = report(tmp_path / "run", store, progress=False).read_text(encoding="utf-8")
    # Frames of 18×20×14 voxels of 1 mm are cut along the last axis.
    assert "slice 1 of 14" in html
    assert 'viewBox="0 0 18.0 20.0"' in html


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validation": ("a", "b")}, "split_hash is not that of"),
        ({"validation": ()}, "split_hash is not that of"),
    ],
)
def test_cases_that_it_may_have_been_trained_on_are_refused(made, tmp_path, changes, said):
    other = data(tmp_path / "prepared", **changes)
    with pytest.raises(InputError, match=said):
        report(made / "run", other, progress=False)


def test_what_cannot_be_reported_is_told_before_the_work(made, tmp_path):
    with pytest.raises(InputError, match="cannot be a page"):
        report(made / "run", made / "prepared", out=tmp_path / "none" / "page.html")
    with pytest.raises(InputError, match="cannot be read"):
        report(tmp_path / "none", made / "prepared")
    copy = tmp_path / "copy"
    shutil.copytree(made / "run", copy, ignore=shutil.ignore_patterns("*.html"))
    card = json.loads((copy / "environment.json").read_text())
    (copy / "environment.json").write_text(json.dumps(card | {"data_hash": "cd" * 32}))
    with pytest.raises(InputError, match="data_hash is not that of"):
        report(copy, made / "prepared")
    with pytest.raises(InputError, match="data_hash is not that of"):
        report(made / "run", made / "prepared", copy)
    (copy / "environment.json").write_text(json.dumps(card | {"fold": 3}))
    with pytest.raises(InputError, match="fold is not that of"):
        report(copy, made / "prepared")
    assert not list(tmp_path.rglob("*.html"))


def test_no_page_makes_a_finished_run_fail(made, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(made / "run", copy, ignore=shutil.ignore_patterns("*.html"))
    assert try_report(copy, made / "prepared") == copy / "report.html"
    (copy / "report.html").unlink()
    (copy / "report.html").mkdir()
    assert try_report(copy, made / "prepared") is None
    assert try_report(copy, tmp_path / "gone") is None
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith("penn: warning: ") for line in said] == [True, True]
    assert "cannot be a page" in said[0]
