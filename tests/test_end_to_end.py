"""The commands as a user runs them, on small synthetic spines."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

from penn_jax.cli import main
from penn_jax.config import (
    Config,
    ModelConfig,
    OptimConfig,
    PatchConfig,
    PrepareConfig,
    TrainConfig,
    to_json,
    write_json,
)
from penn_jax.data.phantom import write_dataset
from penn_jax.data.prepare import prepare
from penn_jax.optim.checkpoint import read_model

CONFIG = Config(
    name="tiny",
    patches=PatchConfig(size=(32, 32), neighbours=1),
    model=ModelConfig(channels=(8, 16), blocks=1),
    optim=OptimConfig(average=0.9),
    train=TrainConfig(batch_size=8, max_steps=12, checkpoint_every=6, log_every=3),
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "raw"
    write_dataset(folder, 5, seed=0, test_cases=2, shape=(64, 60, 6), spacing=(3.0, 3.0, 6.0))
    return folder


@pytest.fixture(scope="module")
def store(raw):
    return prepare(raw, raw.parent / "prepared", PrepareConfig(), workers=1)


@pytest.fixture(scope="module")
def config_file(raw):
    write_json(raw.parent / "tiny.json", to_json(CONFIG))
    return raw.parent / "tiny.json"


def _penn(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def _points(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(store, config_file):
    out = store.parent / "run"
    _penn("train", config_file, "--data", store, "--out", out)
    return out


def test_prepare_reports_and_does_nothing_the_second_time(raw, tmp_path, capsys):
    out = tmp_path / "prepared"
    _penn("prepare", raw, out, "--workers", 1)
    said = capsys.readouterr().out
    assert "7 of 7 subjects" in said
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    _penn("prepare", raw, out, "--workers", 1)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_the_run_directory_tells_what_happened(run):
    points = _points(run)
    losses = [point["loss"] for point in points if "loss" in point]
    assert [point["step"] for point in points] == [3, 6, 9, 12, 12]
    assert points[-2]["patches"] == 12 * 8
    assert np.isfinite(losses).all()
    assert 0 <= points[-1]["dice"] <= 1
    assert {f"pooled_{m}" for m in ("precision", "recall", "f1", "iou")} <= points[-1].keys()
    assert list(run.glob("events.out.tfevents*"))
    environment = json.loads((run / "environment.json").read_text())
    assert environment["labels"] == {"background": 0, "tumour": 1}
    assert environment["data_hash"]
    assert environment["usual"]["cases"] == 4  # of 5, 1 to validate on
    assert f"Mean Dice {100 * points[-1]['dice']:.1f} %" in (run / "report.html").read_text()


def test_masks_lie_on_their_scans_and_are_evaluated(run, raw, tmp_path, capsys):
    masks = tmp_path / "masks"
    _penn("predict", run, raw / "imagesTs", "--out", masks, "--probabilities")
    names = sorted(path.name for path in (raw / "labelsTs").iterdir())
    assert sorted(p.name for p in masks.glob("*.nii.gz") if "prob" not in p.name) == names
    for name in names:
        mask = nib.load(masks / name)
        scan = nib.load(raw / "imagesTs" / name.replace(".nii.gz", "_0000.nii.gz"))
        likely = nib.load(masks / name.replace(".nii.gz", "_probabilities.nii.gz")).get_fdata()
        assert mask.get_data_dtype() == np.uint8
        assert mask.shape == scan.shape
        np.testing.assert_array_equal(mask.affine, scan.affine)
        for form in ("get_qform", "get_sform"):
            (matrix, code), (other, expected) = (
                getattr(image.header, form)(coded=True) for image in (mask, scan)
            )
            assert code == expected
            np.testing.assert_array_equal(matrix, other)
        np.testing.assert_allclose(likely.sum(axis=-1), 1.0, atol=1e-5)
        np.testing.assert_array_equal(likely.argmax(axis=-1), np.asarray(mask.dataobj))
    again = ["predict", run, raw / "imagesTs", "--out", masks]
    assert main([str(argument) for argument in again]) == 2  # nothing is replaced unasked
    assert "--overwrite" in capsys.readouterr().err
    _penn(*again, "--overwrite")
    capsys.readouterr()
    _penn("evaluate", masks, raw / "labelsTs", "--out", tmp_path / "metrics.json")
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert set(result["cases"]) == {name.removesuffix(".nii.gz") for name in names}
    assert set(result["pooled"]) == {"precision", "recall", "accuracy", "f1", "iou", "dice"}
    assert "dice" in capsys.readouterr().out.lower()


def test_a_missing_prediction_is_an_error(run, raw, tmp_path, capsys):
    first = sorted((raw / "imagesTs").iterdir())[0]
    _penn("predict", run, first, "--out", tmp_path / "masks")
    assert main(["evaluate", str(tmp_path / "masks"), str(raw / "labelsTs")]) == 2
    assert "phantom0006" in capsys.readouterr().err


def test_bad_scans_leave_no_mask(run, tmp_path, capsys):
    (tmp_path / "scan.nii.gz").write_bytes(b"not gzip at all")
    code = main(["predict", str(run), str(tmp_path / "scan.nii.gz"), "--out", str(tmp_path / "o")])
    assert code == 2
    assert "scan.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_predictions_never_overwrite_a_scan(run, raw, tmp_path, capsys):
    scan = tmp_path / "a.nii.gz"
    shutil.copy(sorted((raw / "imagesTs").iterdir())[0], scan)
    before = scan.read_bytes()
    assert main(["predict", str(run), str(scan), "--out", str(tmp_path)]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert scan.read_bytes() == before


OTHERWISE = (
    *("--train.parallel", "pmap", "--train.validate-every", "4", "--model.norm", "group"),
    *("--model.dropout", "0.3", "--model.deep-supervision", "--optim.name", "adamw"),
)


@pytest.mark.parametrize(
    ("command", "options"),
    [("train", ()), ("train", OTHERWISE), ("pretrain", ())],
    ids=["train", "everything otherwise", "pretrain"],
)
def test_a_resumed_run_ends_bit_for_bit_as_the_uninterrupted_one(
    store, config_file, tmp_path, command, options
):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    arguments = [command, config_file, "--data", store, *options]
    _penn(*arguments, "--out", whole)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "12")  # as if killed after an earlier step
    _penn(*arguments, "--out", resumed, "--resume")
    models = [read_model(folder / "checkpoints", print) for folder in (whole, resumed)]
    for a, b in zip(*map(jax.tree.leaves, models), strict=True):
        np.testing.assert_array_equal(a, b)
    seals = [
        json.loads((f / "checkpoints" / "12" / "seal.json").read_text()) for f in (whole, resumed)
    ]
    assert seals[0]["arrays"] == seals[1]["arrays"]  # digests of the whole state
    timed = ("seconds", "waiting", "compiling")
    logs = [
        [{k: v for k, v in point.items() if k not in timed} for point in _points(folder)]
        for folder in (whole, resumed)
    ]
    assert logs[0] == logs[1]


def test_a_run_goes_on_only_with_its_own_split(run, store, config_file, tmp_path, capsys):
    other, copied = tmp_path / "other", tmp_path / "run"
    shutil.copytree(store, other)
    manifest = json.loads((store / "manifest.json").read_text())
    split = manifest["splits"][0]
    split["validation"].append(split["train"].pop())
    write_json(other / "manifest.json", manifest)
    shutil.copytree(run, copied)
    arguments = ["train", config_file, "--data", other, "--out", copied, "--resume"]
    assert main([str(argument) for argument in arguments]) == 2
    assert "the run was started with split_hash" in capsys.readouterr().err


def test_pretraining_starts_a_run_and_another_network_is_refused(
    store, config_file, tmp_path, capsys
):
    pretrained = tmp_path / "pretrained"
    _penn("pretrain", config_file, "--data", store, "--out", pretrained, "--max-steps", 4)
    assert "restoration_error" in _points(pretrained)[-1]
    assert main(["predict", str(pretrained), str(store), "--out", str(tmp_path / "m")]) == 2
    assert "was pre-trained only" in capsys.readouterr().err
    arguments = ["train", config_file, "--data", store, "--init", pretrained, "--max-steps", 2]
    _penn(*arguments, "--out", tmp_path / "fine")
    wider = [str(a) for a in (*arguments, "--out", tmp_path / "o", "--model.channels", 8, 24)]
    capsys.readouterr()
    assert main(wider) == 2
    assert "is (16,), expected shape (24,)" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_jit_and_pmap_draw_the_same_patches_and_learn_alike(run, store, config_file, tmp_path):
    mapped = tmp_path / "pmap"
    _penn("train", config_file, "--data", store, "--out", mapped, "--train.parallel", "pmap")
    one, other = _points(run), _points(mapped)
    for a, b in zip(one, other, strict=True):
        if "places" in a:
            assert a["places"] == b["places"]
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_one_device_draws_the_patches_of_four(run, store, config_file, tmp_path):
    out = tmp_path / "one"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = ["train", config_file, "--data", store, "--out", out, "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "penn_jax.cli", *map(str, command)],
        env=environment,
        check=True,
        capture_output=True,
    )
    one, four = (
        {point["step"]: point["places"] for point in _points(folder) if "places" in point}
        for folder in (out, run)
    )
    assert one == four  # a chain of hashes: every patch up to the last step was the same
    assert len(json.loads((out / "environment.json").read_text())["devices"]) == 1
    assert len(json.loads((run / "environment.json").read_text())["devices"]) == 4


def test_resuming_with_other_data_or_split_is_refused(run, store, config_file, tmp_path, capsys):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    environment = json.loads((other / "environment.json").read_text())
    write_json(other / "environment.json", {**environment, "data_hash": "another"})
    arguments = ["train", config_file, "--data", store, "--out", other, "--resume"]
    assert main([str(argument) for argument in arguments]) == 2
    assert "data_hash = 'another'" in capsys.readouterr().err


def test_a_run_that_diverges_stops_naming_the_step(store, config_file, tmp_path, capsys):
    code = main(
        [
            *("train", str(config_file), "--data", str(store), "--out", str(tmp_path / "run")),
            *("--optim.learning-rate", "1e30", "--optim.most-skipped", "2"),
        ]
    )
    assert code == 3
    assert "in a row up to step 3" in capsys.readouterr().err


@pytest.mark.slow
def test_three_axes_learn_by_the_same_commands(tmp_path):
    raw, store, out = tmp_path / "raw", tmp_path / "prepared", tmp_path / "run"
    write_dataset(raw, 5, seed=1, test_cases=1, shape=(40, 40, 40), spacing=(4.0, 4.0, 4.0))
    _penn("prepare", raw, store, "--dimensions", 3, "--workers", 1)
    config = replace(
        CONFIG,
        patches=PatchConfig(size=(24, 24, 24), foreground_fraction=0.9),
        optim=OptimConfig(learning_rate=0.05, average=0.9),
        train=replace(CONFIG.train, max_steps=60, log_every=1, checkpoint_every=0),
    )
    write_json(tmp_path / "three.json", to_json(config))
    _penn("train", tmp_path / "three.json", "--data", store, "--out", out)
    losses = [point["loss"] for point in _points(out) if "loss" in point]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    _penn("predict", out, raw / "imagesTs", "--out", tmp_path / "masks")
    mask = next((tmp_path / "masks").iterdir())
    assert nib.load(mask).shape == nib.load(next((raw / "imagesTs").iterdir())).shape


@pytest.mark.slow
def test_the_demo_ends_with_its_table_and_pictures(tmp_path, monkeypatch, capsys):
    from penn_jax import demo

    small = replace(demo.CONFIG, train=replace(demo.CONFIG.train, max_steps=4))
    monkeypatch.setattr(demo, "CASES", 4)
    monkeypatch.setattr(demo, "TEST_CASES", 2)
    monkeypatch.setattr(demo, "CONFIG", small)
    monkeypatch.setattr(demo, "PRETRAINING", replace(small, name="demo-pretrain"))
    _penn("demo", "--out", tmp_path / "demo")
    said = capsys.readouterr().out
    assert "Dice" in said
    assert {"masks", "metrics.json", "overlay.png", "curves.png"} <= {
        path.name for path in (tmp_path / "demo").iterdir()
    }
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "exists" in capsys.readouterr().err


DATA = Path(os.environ.get("PENN_DATA", "../shared/data"))


@pytest.mark.skipif(not (DATA / "spine_t1").is_dir(), reason="PENN_DATA has no spine_t1")
def test_real_spines_are_prepared_and_the_planted_copy_is_found(tmp_path, capsys):
    _penn("prepare", DATA / "spine_t1", tmp_path / "spine", "--merge-labels")
    manifest = json.loads((tmp_path / "spine" / "manifest.json").read_text())
    assert len(manifest["cases"]) == 28
    assert any("sub18" in line and "sub19" in line for line in manifest["findings"])
    assert "sub18" in capsys.readouterr().out
