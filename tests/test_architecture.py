"""The dependency rule, and that every value of the config is read somewhere."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import penn_jax.config
from penn_jax.config import Config, PrepareConfig

PACKAGE = Path(penn_jax.config.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PARTS = ("data", "model", "optim", "predict", "report", "export")
BASE = {"penn_jax.config", "penn_jax.types"}
COMMANDS = ("train.py", "pretrain.py", "segment.py", "evaluate.py", "exporting.py")
CONFINED = {
    # penn_torch.py and penn_monai.py stand alone: they are copied into exports.
    "nibabel": {
        *("data/header.py", "data/volume.py"),
        *("export/penn_torch.py", "export/penn_monai.py"),
    },
    "grain": {"data/loader.py"},
    "numba": {"data/interpolate.py"},
    "tensorstore": {"data/store.py", "data/remote.py"},
    "orbax": {"optim/checkpoint.py"},
    "tyro": {"config_file.py"},
    "tensorboardX": {"log.py"},
    "torch": {"export/torch.py", "export/penn_torch.py", "export/penn_monai.py"},
    "monai": {"export/penn_monai.py"},
    "safetensors": {"export/penn_torch.py", "export/weights.py"},
    "shtab": {"completion.py"},
    "pydicom": {"data/dicom_slices.py", "data/dicom_seg.py"},
    "highdicom": {"data/dicom_slices.py", "data/dicom_seg.py"},
    "onnx": {"export/onnx.py"},
    "onnxruntime": {"export/onnx.py"},
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _of_project(path: Path) -> set[str]:
    """Modules of the project that a file imports, without the names inside them."""
    modules = {
        ".".join(("penn_jax", *module.relative_to(PACKAGE).with_suffix("").parts))
        for module in MODULES
    }
    return {name for name in _imports(path) if name in modules}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependency_rule(path):
    inside = path.relative_to(PACKAGE)
    part = inside.parts[0] if len(inside.parts) > 1 else ""
    imported = _of_project(path)
    if str(inside) in ("config.py", "types.py"):
        assert imported == set()
    elif part in ("data", "model", "optim", "report"):
        own = {name for name in imported if name.startswith(f"penn_jax.{part}.")}
        assert imported - own <= BASE
    elif part == "predict":
        own = {name for name in imported if name.startswith("penn_jax.predict.")}
        allowed = {"penn_jax.data.volume", "penn_jax.data.grid", "penn_jax.data.patches"}
        assert imported - own <= BASE | allowed
    # Down from the command line: cli, options, commands; completion needs the options once more.
    assert "penn_jax.cli" not in imported
    if str(inside) not in ("cli.py", "commands.py"):
        assert "penn_jax.options" not in imported
    if str(inside) != "options.py":
        assert "penn_jax.commands" not in imported
    if str(inside) in COMMANDS:
        # What commands share lies below them; only the demo and the command line call them.
        assert not imported & {f"penn_jax.{name.removesuffix('.py')}" for name in COMMANDS}
    if part in ("data", "report"):
        assert not any(name.split(".")[0] == "jax" for name in _imports(path))
    for library, homes in CONFINED.items():
        if any(name.split(".")[0] == library for name in _imports(path)):
            assert str(inside) in homes


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_composing_modules_take_the_whole_config(path):
    inside = path.relative_to(PACKAGE)
    if len(inside.parts) > 1:
        assert "penn_jax.config.Config" not in _imports(path)


def test_every_config_value_is_read_somewhere():
    code = "\n".join(p.read_text(encoding="utf-8") for p in MODULES if p.name != "config.py")
    sections = [
        PrepareConfig,
        *(type(getattr(Config(), f.name)) for f in dataclasses.fields(Config)),
    ]
    for section in sections:
        if not dataclasses.is_dataclass(section):
            continue
        for field in dataclasses.fields(section):
            read = re.search(rf"\.{field.name}\b(?!\s*=[^=])", code)
            assert read, f"{section.__name__}.{field.name} is never read"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled(path):
    roots = {name.split(".")[0] for name in _imports(path)}
    assert not roots & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    text = path.read_text(encoding="utf-8")
    assert "allow_pickle" not in text
    assert not re.search(r"\b(np|numpy)\.load\(|\btorch\.load\((?!.*weights_only=True)", text)
