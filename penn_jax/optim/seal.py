"""Seals of checkpoints: checksums of every file and every array, so that damage is never silent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from penn_jax.config import json_text, write_json
from penn_jax.types import InputError

SEAL = "seal.json"


def damage(path: Path) -> str | None:
    """What is wrong with a sealed step, None where every byte is as it was written."""
    try:
        files = read_seal(path)["files"]
    except InputError as error:
        return error.wrong
    try:
        found = dict(_files(path))
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    for name in sorted(files.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if files.get(name) != found[name]:
            return f"{name} is not what was written"
    return None


def write_seal(path: Path, content: dict[str, Any]) -> None:
    """Seal a step's folder: ``content`` and the checksums of all its files, in ``seal.json``.

    Raises:
        OSError: the seal cannot be written.
    """
    content = {**content, "files": dict(_files(path))}
    write_json(path / SEAL, {**content, "sha256": _sha256_of(content)})


def read_seal(path: Path) -> dict[str, Any]:
    """The content of a step's seal.

    Raises:
        InputError: there is none, or a byte of it is not as it was written.
    """
    try:
        text = (path / SEAL).read_text(encoding="utf-8")
        content = json.loads(text)
        as_written = json_text(content) == text
        if content.pop("sha256") == _sha256_of(content) and as_written:
            return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise InputError(path / SEAL, f"{SEAL} is not what was written", "a seal", "see --resume")


def _sha256_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json_text(content).encode()).hexdigest()


def _files(path: Path) -> Iterator[tuple[str, str]]:
    """Relative name and SHA-256 of every file of a step, the seal left out."""
    for root, _, names in os.walk(path):
        for name in names:
            file = Path(root, name)
            relative = file.relative_to(path).as_posix()
            if relative != SEAL:
                with file.open("rb") as stream:
                    yield relative, hashlib.file_digest(stream, "sha256").hexdigest()


def named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree, each with its path as text."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def digests(tree: Any) -> dict[str, dict[str, Any]]:
    """Shape and SHA-256 of each array of a tree."""
    found = {}
    for name, leaf in named(tree):
        array = np.asarray(leaf)
        digest = hashlib.sha256(str(array.dtype).encode() + array.tobytes()).hexdigest()
        found[name] = {"shape": list(array.shape), "sha256": digest}
    return found
