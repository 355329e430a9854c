"""What each command ends with: quiet, and as one JSON object that another program can read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from penn_jax.cli import main
from penn_jax.config import Config, ModelConfig, PatchConfig, TrainConfig, to_json, write_json
from penn_jax.data.phantom import write_dataset
from penn_jax.evaluate import evaluate
from penn_jax.report.metrics import METRICS

CONFIG = Config(
    name="tiny",
    patches=PatchConfig(size=(16, 16)),
    model=ModelConfig(stem=4, channels=(4,), blocks=1),
    train=TrainConfig(batch_size=4, max_steps=2, checkpoint_every=0, log_every=1),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    write_dataset(
        folder / "raw", 4, seed=0, test_cases=1, shape=(32, 32, 4), spacing=(6.0, 6.0, 9.0)
    )
    write_json(folder / "tiny.json", to_json(CONFIG))
    (folder / "study.py").write_text(
        "from penn_jax.config import Arm, Config, Study\n"
        "study = Study('s', 'S', (Arm('a', Config()),))\n"
    )
    return folder


def test_every_command_can_end_with_one_json_object(folder, capfd, monkeypatch):
    """In the order in which they need each other; stderr stays empty, stdout holds nothing else."""
    monkeypatch.chdir(folder)

    def ended(*words):
        assert main([*words, "--quiet", "--json"]) == 0
        said, error = capfd.readouterr()
        assert error == ""
        return json.loads(said)

    size = ("--shape", "32", "32", "4", "--spacing", "6", "6", "9")
    spines = ended("phantoms", "spines", "--cases", "2", *size)
    assert spines == {"raw": "spines", "cases": 2}
    assert len(list(Path("spines/labelsTr").iterdir())) == 2
    prepared = ended("prepare", "raw", "prepared", "--workers", "1")
    assert (prepared["cases"], prepared["labelled"]) == (5, 5)
    assert prepared["splits"] == [{"train": 3, "validation": 1}]
    data = ("--data", "prepared")
    trained = ended("train", "tiny.json", *data, "--out", "run")
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert trained["dice"] == logged[-1]["dice"]
    assert {name for name in trained if name.startswith("pooled_")} <= {
        f"pooled_{name}" for name in METRICS
    }
    assert trained["report"] is None  # penn report draws it where train is quiet
    predicted = ended("predict", "run", "raw/imagesTs", "--out", "masks")
    assert all(Path(mask).is_file() for mask in predicted["masks"])
    assert len(json.loads(Path(predicted["predictions"]).read_text())["cases"]) == 1
    evaluated = ended("evaluate", "masks", "raw/labelsTs", "--out", "metrics.json")
    assert evaluated == json.loads(Path("metrics.json").read_text())
    assert Path(ended("report", "masks")["page"]).is_file()
    exported = ended("export", "run", "--to", "torch", "--out", "exported")
    assert exported == {"export": "exported", "format": "torch"}
    imported = ended("import", "torch", "exported", "--out", "imported")
    assert imported == {"run": "imported", "weights": "exported"}
    assert "jax" in ended("doctor")["packages"]


def test_long_commands_hand_on_what_their_part_returns(folder, capfd, monkeypatch):
    """Runs of seconds, which the tests of these parts do: here only what is told of them."""
    done = {"step": 7, "seconds": 1.5, "paused": 0.5}
    monkeypatch.setattr("penn_jax.pretrain.pretrain", lambda *_: done)
    monkeypatch.setattr("penn_jax.study.study", lambda *_: {"name": "s", "arms": []})
    monkeypatch.setattr("penn_jax.report.study_tables.study_markdown", lambda table: "| arm |")
    given = ["--data", "prepared", "--out", "out"]
    for command, file, result, text in (
        ("pretrain", "tiny.json", {"run": "out", **done}, "out: 7 steps in 2 s of training"),
        ("study", "study.py", {"name": "s", "arms": []}, "| arm |"),
    ):
        assert main([command, str(folder / file), *given, "--json"]) == 0
        assert json.loads(capfd.readouterr().out) == result
        assert main([command, str(folder / file), *given]) == 0
        assert capfd.readouterr().out.startswith(text)


def test_what_a_part_prints_does_not_disturb_the_json(folder, capsys, monkeypatch):
    def talks(*arguments, **options):
        print("a library says hello")
        return evaluate(*arguments, **options)

    monkeypatch.setattr("penn_jax.evaluate.evaluate", talks)
    labels = str(folder / "raw" / "labelsTr")
    assert main(["evaluate", labels, labels, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["mean"]["dice"]["value"] == 1.0  # masks against themselves
    assert said.err == "a library says hello\n"


def test_quiet_leaves_the_result_for_a_person(folder, capfd):
    labels = str(folder / "raw" / "labelsTr")
    assert main(["evaluate", labels, labels, "--quiet"]) == 0
    said, error = capfd.readouterr()
    assert error == ""
    assert "Dice" in said
    assert "100.0" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_result_that_cannot_be_written_is_one_line(folder, form):
    labels = str(folder / "raw" / "labelsTr")
    command = [sys.executable, "-m", "penn_jax.cli", "evaluate", labels, labels, *form]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("penn: error: stdout: No space left on device")
    assert ended.stderr.count("\n") == 1
