"""``penn doctor``: what is installed, what is missing, and what would install it."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Part(NamedTuple):
    """An extra of this package."""

    modules: tuple[str, ...]
    """Those that it needs, by the names under which they are imported."""
    use: str


PARTS = {
    "onnx": Part(("onnx", "onnxruntime"), "faster prediction on a CPU; penn export --to onnx"),
    "dicom": Part(("pydicom", "highdicom"), "penn predict on DICOM series, --dicom-seg"),
    "viewer": Part(("ipyniivue",), "penn view"),
    "torch": Part(("torch",), "penn export --to monai, penn import of .pt files"),
    "completion": Part(("shtab",), "penn completion"),
}
"""By the name in brackets: ``pip install 'penn-jax[NAME]'``."""

_GPU = Path("/dev/nvidia0")


def diagnose() -> dict[str, Any]:
    """What this machine offers, as plain JSON types; finds faults, never raises for one."""
    cache = jax.config.values["jax_compilation_cache_dir"]
    devices, trouble = _devices()
    return {
        "penn_jax": metadata.version("penn-jax"),
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "packages": _core_packages(),
        "devices": devices,
        "trouble": trouble,
        "parts": {
            name: {
                "use": part.use,
                "installed": all(importlib.util.find_spec(module) for module in part.modules),
                "command": f"pip install 'penn-jax[{name}]'",
            }
            for name, part in PARTS.items()
        },
        "compile_cache": {"folder": cache, "writable": cache is not None and _writable(cache)},
        "free_disk": {str(folder): _free(folder) for folder in _folders(cache)},
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """What :func:`diagnose` found, for a person."""
    told = [
        f"penn_jax {found['penn_jax']}, Python {found['python']}, {found['system']}",
        "packages   " + ", ".join(f"{name} {v or '?'}" for name, v in found["packages"].items()),
        "devices    " + (", ".join(found["devices"]) or "none"),
        *(f"           {trouble}" for trouble in found["trouble"]),
    ]
    for name, part in found["parts"].items():
        state = "installed" if part["installed"] else f"missing: {part['command']}"
        told.append(f"{name:<11}{state} ({part['use']})")
    cache = found["compile_cache"]
    state = "writable" if cache["writable"] else "cannot be written: every start compiles anew"
    told.append(f"cache      {cache['folder']}: {state}")
    told += [
        f"disk       {folder}: {free / 1024**3:.1f} GiB free"
        for folder, free in found["free_disk"].items()
    ]
    return told


def _core_packages() -> dict[str, str | None]:
    """The packages that this one cannot do without, with their versions; None where missing."""
    found: dict[str, str | None] = {}
    for line in metadata.requires("penn-jax") or ():
        if "extra ==" in line:
            continue
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _devices() -> tuple[list[str], list[str]]:
    """What jax computes on, and what keeps it from more."""
    try:
        devices = jax.devices()
    except RuntimeError as error:
        return [], [" ".join(str(error).split())]
    trouble = []
    if _GPU.exists() and all(device.platform == "cpu" for device in devices):
        trouble.append("there is an NVIDIA GPU that jax does not see: pip install 'penn-jax[cuda]'")
    return [f"{device.platform}:{device.id} {device.device_kind}" for device in devices], trouble


def _writable(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _folders(cache: str | None) -> list[Path]:
    """The working folder, and the cache where it lies on another disk."""
    here = Path.cwd()
    if cache and Path(cache).is_dir() and Path(cache).stat().st_dev != here.stat().st_dev:
        return [here, Path(cache)]
    return [here]


def _free(folder: Path) -> int:
    """Bytes."""
    return shutil.disk_usage(folder).free
