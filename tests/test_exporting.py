"""``penn export`` and ``penn import`` on files: every format predicts what its run predicts."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import penn_jax.export
from penn_jax.cli import main
from penn_jax.config import Config, ModelConfig, PatchConfig, PredictConfig
from penn_jax.export import onnx
from penn_jax.export.penn_torch import load
from penn_jax.model.network import Network, initialise
from penn_jax.optim.checkpoint import Checkpoints
from penn_jax.report.metrics import METRICS
from penn_jax.report.surface import SurfaceDistances
from penn_jax.run import ModelCard, load_model, opened
from penn_jax.segment import predict

FORMATS = ("torch", "onnx", "stablehlo", "monai")
CONFIG = Config(
    name="small",
    model=ModelConfig(stem=2, channels=(4, 6, 8), blocks=1, deep_supervision=True),
    patches=PatchConfig(size=(16, 16), neighbours=1),
    predict=PredictConfig(mirror=True, smallest_component=40.0),
)
CARD = ModelCard(
    channels=["T1"],
    labels={"background": 0, "a": 1, "b": 2},
    label_values=[0, 7, 9],
    dimensions=2,
    spacing=[1.2, 0.9],
    data_hash="0123",
    split_hash="4567",
    fold=0,
    task="segmentation",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose weights were drawn, not trained: nothing is compiled."""
    out, rng = tmp_path_factory.mktemp("runs") / "run", np.random.default_rng(3)
    network = Network(CONFIG.model, 3)
    shapes = jax.eval_shape(lambda: initialise(network, jax.random.key(0), 3, 2))

    def drawn(path, leaf):
        values, name = rng.normal(size=leaf.shape).astype(np.float32), path[-1].key
        if name == "kernel":
            return values * np.float32(2 / np.sqrt(np.prod(leaf.shape[:-1])))
        return 0.3 * values if name in ("bias", "mean") else np.exp(0.3 * values)

    variables = jax.tree_util.tree_map_with_path(drawn, shapes)
    with opened(out, CONFIG, CARD, resume=False):
        state = {"step": np.ones((), np.int32)}
        Checkpoints(out / "checkpoints", print).save(5, variables, state, {}, None)
    lines = [{"step": 3, "loss": 1.0}, {"step": 5, "dice": 0.875, "pooled_dice": 0.9}]
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


@pytest.fixture(scope="module")
def exports(run, tmp_path_factory):
    """The run in every format."""
    folder = tmp_path_factory.mktemp("exports")
    for to in FORMATS:
        assert penn("export", run, "--to", to, "--out", folder / to) == 0
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Oblique to no axis, of another orientation and spacing than the frames."""
    rng = np.random.default_rng(0)
    x = np.stack(np.meshgrid(*(np.linspace(0, 3, n) for n in (6, 30, 26)), indexing="ij"))
    smooth = sum(np.sin(3 * rng.normal(size=3) @ x.reshape(3, -1) + i) for i in range(4))
    array = 100 * smooth.reshape(x.shape[1:]) + rng.normal(0, 20, x.shape[1:])
    path = tmp_path_factory.mktemp("scans") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag((-4.0, 1.0, -1.3, 1.0))), path)
    return path


@pytest.fixture(scope="module")
def expected(run, scan, tmp_path_factory):
    """The run's mask, and where its two most likely classes differ by more than 1e-4."""
    out = tmp_path_factory.mktemp("expected")
    change = {"smallest_component": 0.0}
    predict([run, scan], out / "all", change, probabilities=True, engine="jax", progress=False)
    predict([run, scan], out / "mask", engine="jax", progress=False)
    likely = np.sort(read(out / "all" / "scan_probabilities.nii.gz"), axis=-1)
    decided = likely[..., -1] - likely[..., -2] > 1e-4
    mask = read(out / "mask" / "scan.nii.gz")
    assert set(np.unique(mask)) == {0, 7, 9}
    assert (mask != read(out / "all" / "scan.nii.gz")).any()  # components were dropped
    assert decided.mean() > 0.99
    return mask, decided


def penn(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def same(found: Path, expected) -> bool:
    mask, decided = expected
    return read(found).shape == mask.shape and bool((read(found) == mask)[decided].all())


def said(capsys, *arguments) -> str:
    """What is told of a mistake: one line, exit code 2."""
    code, line = penn(*arguments), capsys.readouterr().err
    assert code == 2
    assert line.startswith("penn: error: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_predicts_what_its_run_predicts(exports, scan, expected, tmp_path, to):
    assert penn("predict", exports / to, scan, "--out", tmp_path) == 0
    assert same(tmp_path / "scan.nii.gz", expected)


def test_a_run_and_its_export_can_be_averaged(run, exports, scan, expected, tmp_path):
    models = [run, exports / "onnx", exports / "stablehlo"]
    assert penn("predict", models[0], scan, *models[1:], "--out", tmp_path) == 0
    assert same(tmp_path / "scan.nii.gz", expected)


def test_the_folder_segments_where_neither_jax_nor_penn_jax_is(exports, scan, expected, tmp_path):
    program = (
        "import sys, runpy\n"
        "gone = ('jax', 'flax', 'penn_jax', 'scipy', 'monai', 'orbax', 'pydantic')\n"
        "sys.modules.update(dict.fromkeys(gone))\n"
        "sys.argv.pop(0)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script, mask = exports / "torch" / "penn_torch.py", tmp_path / "mask.nii.gz"
    command = [sys.executable, "-W", "error", "-c", program, *map(str, (script, scan, mask))]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert same(mask, expected)


@pytest.mark.parametrize("to", ["torch", "monai"])
def test_export_and_import_is_the_identity(run, exports, tmp_path, to):
    assert penn("import", "torch", exports / to, "--out", tmp_path / "run") == 0
    (config, card, ours), (_, _, theirs) = load_model(tmp_path / "run"), load_model(run)
    assert (config, card) == (CONFIG, CARD)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert penn("export", tmp_path / "run", "--to", "torch", "--out", tmp_path / "again") == 0
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (exports / "torch" / name).read_bytes()
    assert "Imported from PyTorch" in (tmp_path / "again" / "README.md").read_text()


def test_folded_weights_predict_the_same_without_normalisation(run, scan, expected, tmp_path):
    assert penn("export", run, "--to", "torch", "--fold", "--out", tmp_path / "folded") == 0
    network, config = load(tmp_path / "folded")
    assert config["network"]["norm"] == "none"
    assert not any("norm" in name and "weight" in name for name in network.state_dict())
    assert penn("predict", tmp_path / "folded", scan, "--out", tmp_path) == 0
    assert same(tmp_path / "scan.nii.gz", expected)
    assert penn("import", "torch", tmp_path / "folded", "--out", tmp_path / "run") == 0
    assert load_model(tmp_path / "run")[0].model.norm == "none"


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_trained_further_come_back(exports, scan, tmp_path, ending):
    torch.manual_seed(0)
    network, _ = load(exports / "torch")
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    x, y = torch.randn(2, 3, 16, 16), torch.randint(0, 3, (2, 16, 16))
    losses = []
    for _ in range(20):
        scores = network.train()(x)
        loss = torch.nn.functional.cross_entropy(scores[0], y)
        loss = loss + 0.5 * torch.nn.functional.cross_entropy(scores[1], y[:, ::2, ::2])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    path = tmp_path / f"tuned.{ending}"
    state = network.state_dict()
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    arguments = ["import", "torch", exports / "torch", "--weights", path, "--out", tmp_path / "run"]
    assert penn(*arguments) == 0
    for name, folder in (("tuned", tmp_path / "run"), ("before", exports / "torch")):
        assert penn("predict", folder, scan, "--out", tmp_path / name) == 0
    tuned, before = (read(tmp_path / name / "scan.nii.gz") for name in ("tuned", "before"))
    assert (tuned != before).any()
    assert penn("export", tmp_path / "run", "--to", "torch", "--out", tmp_path / "again") == 0
    again, _ = load(tmp_path / "again")
    with torch.inference_mode():
        np.testing.assert_array_equal(again(x).numpy(), network.eval()(x).numpy())


# ---- the card ----------------------------------------------------------------------------------


def evaluation() -> dict:
    mean = {"value": 0.9, "ci95": [0.85, 0.95], "n": 4}
    return {
        "pooled": dict.fromkeys(METRICS, 0.9),
        "pooled_ci95": {name: [0.8, 0.99] for name in METRICS},
        "mean": dict.fromkeys((*METRICS, *SurfaceDistances._fields), mean),
        "cases": {name: {} for name in "abcd"},
    }


def test_the_card_tells_data_metrics_use_and_limits(run, exports, tmp_path):
    logged = (exports / "torch" / "README.md").read_text()
    assert (
        "validation, on the prepared grid, without intervals: dice 0.8750, pooled dice 0.9000"
        in logged
    )
    (tmp_path / "metrics.json").write_text(json.dumps(evaluation()))
    arguments = ["--to", "onnx", "--metrics", tmp_path / "metrics.json", "--out", tmp_path / "onnx"]
    assert penn("export", run, *arguments) == 0
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert "on 4 cases" in card
    assert "| Dice (%) | 90.0 | 80.0 to 99.0 | 90.0 | 85.0 to 95.0 | 4 |" in card
    for text in (logged, card):
        for part in ("0123", "4567", "7 a, 9 b", "1.2 × 0.9 mm", "not a medical", "100649"):
            assert part in text
    assert not list(tmp_path.glob(".*"))


# ---- mistakes ----------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_told(run, exports, tmp_path, capsys):
    out = ("--to", "torch", "--out", tmp_path / "new")
    assert "config.json: cannot be read" in said(capsys, "export", tmp_path / "gone", *out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    line = said(capsys, "export", run, "--to", "torch", "--out", tmp_path / "full")
    assert "full: is there already" in line
    assert "is an export to onnx" in said(capsys, "export", exports / "onnx", *out)
    broken = {**evaluation(), "mean": {**evaluation()["mean"], "dice": {"value": float("nan")}}}
    for content in (None, "no JSON", '{"mean": {"dice": 0.9}}', json.dumps(broken)):
        if content is not None:
            (tmp_path / "metrics.json").write_text(content)
        line = said(capsys, "export", run, *out, "--metrics", tmp_path / "metrics.json")
        assert "metrics.json: is no evaluation" in line
    shutil.copytree(run, tmp_path / "pretrained")
    card = tmp_path / "pretrained" / "environment.json"
    card.write_text(card.read_text().replace('"segmentation"', '"restoration"'))
    assert "pre-trained only" in said(capsys, "export", tmp_path / "pretrained", *out)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_files_that_were_changed_are_told(exports, scan, tmp_path, capsys, to):
    folder, weights = tmp_path / "export", json.loads((exports / to / "config.json").read_text())
    (name,) = weights["files"]
    content = (exports / to / name).read_bytes()
    config = (exports / to / "config.json").read_text()
    for path, changed, told in (
        (name, content[:1000] + bytes([content[1000] ^ 1]) + content[1001:], "is not what was exp"),
        (name, None, "cannot be read"),
        ("config.json", config.replace("0.9", "0.8", 1).encode(), "is not what was exported"),
        ("config.json", config.replace('"halo"', '"hello"').encode(), "is not what was exported"),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(exports / to, folder)
        (folder / path).unlink()
        if changed is not None:
            (folder / path).write_bytes(changed)
        line = said(capsys, "predict", folder, scan, "--out", tmp_path / "masks")
        assert f"{path}: {told}" in line
    assert not (tmp_path / "masks").exists()


def test_what_cannot_be_imported_is_told(run, exports, tmp_path, capsys):
    def line(folder, *more):
        return said(capsys, "import", "torch", folder, "--out", tmp_path / "run", *more)

    assert "is no export" in line(tmp_path)
    assert "run: is no export" in line(run)
    assert "is an export to onnx, expected to torch" in line(exports / "onnx")
    assert "gone.pt: cannot be read" in line(exports / "torch", "--weights", tmp_path / "gone.pt")
    network, _ = load(exports / "torch")
    state, tuned = network.state_dict(), tmp_path / "tuned.safetensors"
    for change, told in (
        ({"head_0.bias": None}, "head_0.bias is missing, expected shape (3,)"),
        ({"head_0.bias": torch.ones(5)}, "head_0.bias is of shape (5,), expected (3,)"),
        ({"tail.bias": torch.ones(5)}, "tail.bias is of no layer"),
        ({"head_0.bias": torch.ones(3).half()}, "head_0.bias is float16, expected float32"),
        ({"head_0.bias": torch.ones(3).bfloat16()}, "tuned.safetensors: "),
    ):
        save_file({k: v for k, v in (state | change).items() if v is not None}, tuned)
        assert told in line(exports / "torch", "--weights", tuned)
    assert not (tmp_path / "run").exists()
    line = said(capsys, "import", "torch", exports / "torch", "--out", run)
    assert "run: is there already" in line


def test_nothing_is_left_of_an_import_that_fails(exports, tmp_path, capsys, monkeypatch):
    full = type("Usage", (), {"free": 0})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    arguments = ("import", "torch", exports / "torch", "--out", tmp_path / "run")
    assert "cannot be written" in said(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_one_stands_in_is_filled(run, exports, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert penn("export", run, "--to", "torch", "--out", ".") == 0
    name = "model.safetensors"
    assert (tmp_path / name).read_bytes() == (exports / "torch" / name).read_bytes()


def test_a_program_is_left_to_its_own_engine(exports, scan, tmp_path, capsys):
    arguments = (scan, "--out", tmp_path / "masks", "--engine")
    assert "export to onnx, expected onnxruntime" in said(
        capsys, "predict", exports / "onnx", *arguments, "jax"
    )
    assert "export to stablehlo, expected jax" in said(
        capsys, "predict", exports / "stablehlo", *arguments, "onnxruntime"
    )


def test_packages_that_are_missing_are_told(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    line = said(capsys, "export", run, "--to", "onnx", "--out", tmp_path / "new")
    assert "pip install 'penn-jax[onnx]'" in line
    monkeypatch.undo()
    monkeypatch.delattr(penn_jax.export, "torch", raising=False)
    monkeypatch.setitem(sys.modules, "penn_jax.export.torch", None)
    line = said(capsys, "export", run, "--to", "monai", "--out", tmp_path / "new")
    assert "pip install 'penn-jax[torch]'" in line
    assert not (tmp_path / "new").exists()


# ---- MONAI -------------------------------------------------------------------------------------


def test_monai_runs_the_bundle_and_finds_nothing_missing(exports, scan, expected, tmp_path):
    """In a process of its own: MONAI puts the bundle's ``scripts`` among the modules."""
    program = """
import runpy, sys
from monai.bundle import ConfigWorkflow, verify_net_in_out
config, meta = "configs/inference.json", "configs/metadata.json"
verify_net_in_out("network_def", meta, config, device="cpu", n=2)
workflow = ConfigWorkflow(config, meta, False, workflow_type="inference", dataset_dir=sys.argv[1])
workflow.initialize()
print("missing", workflow.check_properties())
sys.argv = ["monai.bundle", "run", "--config_file", config,
            "--dataset_dir", sys.argv[1], "--output_dir", sys.argv[2]]
runpy.run_module("monai.bundle", run_name="__main__")
"""
    command = [sys.executable, "-c", program, str(scan.parent), str(tmp_path)]
    bundle = exports / "monai"
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=bundle)
    assert answer.returncode == 0, answer.stderr
    assert "missing []" in answer.stdout
    assert same(tmp_path / "scan.nii.gz", expected)


def test_a_bundle_is_written_where_monai_is_not_installed(run, tmp_path, monkeypatch):
    version = metadata.version

    def missing(name):
        if name in ("monai", "pytorch-ignite"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert penn("export", run, "--to", "monai", "--out", tmp_path / "bundle") == 0
    meta = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert meta["monai_version"] == "1.6.1"


def test_metadata_have_what_the_schema_of_monai_asks_for(exports):
    # meta_schema_20240725.json, "required" of the document and of a tensor.
    required = (
        "schema version monai_version pytorch_version numpy_version required_packages_version "
        "task description authors copyright network_data_format"
    )
    meta = json.loads((exports / "monai" / "configs" / "metadata.json").read_text())
    assert set(required.split()) <= meta.keys()
    data = meta["network_data_format"]
    for tensor in (data["inputs"]["image"], data["outputs"]["pred"]):
        wanted = "type format num_channels spatial_shape dtype value_range"
        assert set(wanted.split()) <= tensor.keys()
        assert len(tensor["channel_def"]) == tensor["num_channels"] == 3
        assert tensor["spatial_shape"] == ["8*n", "8*n"]  # stem 2, three stages


def test_help_shows_an_example(capsys):
    for command in ("export", "import"):
        with pytest.raises(SystemExit) as stop:
            penn(command, "--help")
        assert stop.value.code == 0
        assert f"example: penn {command}" in capsys.readouterr().out
