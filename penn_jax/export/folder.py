"""The folder of an export: ``config.json`` says what it is and how it predicts, under checksums.

::

    config.json      "penn_jax_export": the format; "network", "scan", "evaluation", "mask": all
                     that leads from a scan to its mask; "run": config and model card of the run;
                     "files": SHA-256 of the file with the weights; "sha256": of all the rest
    README.md        the model card
    …                the weights, and what else the format holds
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penn_jax.config import write_json
from penn_jax.data.remote import Place
from penn_jax.types import InputError

CONFIG = "config.json"
FORMAT = "penn_jax_export"
WEIGHTS = {
    "torch": "model.safetensors",
    "onnx": "model.onnx",
    "stablehlo": "model.stablehlo",
    "monai": "models/model.pt",
}
"""The file with the weights in each format."""

_REMEDY = "copy the export again, or export it again"


def is_export(folder: Place) -> bool:
    """Whether a folder holds an export, whole or damaged, and not a run."""
    try:
        return FORMAT in json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``out`` when all is in it, and is removed where that fails.

    Raises:
        InputError: ``out`` is there and is no empty folder.
    """
    check_new(out)
    out = out.absolute()  # "." has no name
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new(out: Path) -> None:
    """Make sure that nothing is overwritten.

    Raises:
        InputError: ``out`` is there and is no empty folder.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(out, "is there already", "a new folder", "choose another")


def write_export(folder: Path, content: Mapping[str, Any], weights: bytes) -> None:
    """Write the weights and ``config.json`` of an export.

    Args:
        folder: an existing folder.
        content: of ``config.json``, plain JSON types, all but the checksums.
        weights: content of the format's file of weights.
    """
    name = WEIGHTS[content[FORMAT]]
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(weights)
    sealed = {**content, "files": {name: hashlib.sha256(weights).hexdigest()}}
    write_json(folder / CONFIG, {**sealed, "sha256": _sha256_of(sealed)})


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of an export.

    Raises:
        InputError: it is missing, something else, or not as it was written.
    """
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        whole = content.pop("sha256") == _sha256_of(content)
        if whole and WEIGHTS[content[FORMAT]] in content["files"] and "card" in content["run"]:
            return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise InputError(path, "is not what was exported", "config.json of penn export", _REMEDY)


def read_weights(folder: Path, content: Mapping[str, Any]) -> tuple[Path, bytes]:
    """The file with the weights of an export, and what is in it.

    Args:
        folder: of the export.
        content: of its ``config.json``.

    Raises:
        InputError: the file is missing, or not as it was written.
    """
    name = WEIGHTS[content[FORMAT]]
    path = folder / name
    try:
        weights = path.read_bytes()
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
        raise InputError(path, wrong, "the weights of the export", _REMEDY) from error
    if hashlib.sha256(weights).hexdigest() != content["files"][name]:
        raise InputError(
            path,
            "is not what was exported",
            "the SHA-256 that config.json names",
            f"{_REMEDY}; of weights trained further, penn import torch makes a run",
        )
    return path, weights


def _sha256_of(content: Mapping[str, Any]) -> str:
    # As in penn_torch.py, which stands alone.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
