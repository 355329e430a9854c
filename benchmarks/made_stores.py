"""Prepared stores of arrays that a test or benchmark makes itself, without raw scans."""

import json
from pathlib import Path

import numpy as np

from penn_jax.config import PrepareConfig, config_hash, to_json
from penn_jax.data.store import StoreWriter

CLASSES = 4


def case_record(shape, labels=None):
    """The entry of a case whose frames are as the file has them.

    Args:
        shape: (F, *spatial, C) of the image.
        labels: (F, *spatial), or None.
    """
    frames, *spatial, channels = shape
    flat = len(spatial) == 2
    counts = np.bincount(np.ravel([] if labels is None else labels).astype(int), minlength=256)
    numbers = [*range(CLASSES), *([255] if counts[255] else [])]
    return {
        "subject": "someone",
        "part": "train",
        "labelled": labels is not None,
        "fingerprint": "0" * 64,
        "shape": [*spatial, frames] if flat else list(spatial),
        "native_spacing": [1.0, 1.0, 1.0],
        "orientation": "RAS",
        "affine": np.eye(4).tolist(),
        "slice_axis": 2 if flat else None,
        "frames_shape": list(shape),
        "intensity": {
            name: [0.0] * channels for name in ("minimum", "median", "percentile_99", "maximum")
        },
        "voxels": {} if labels is None else {str(n): int(counts[n]) for n in numbers},
        "sources": [{"path": "imagesTr/scan.nii.gz", "sha256": "0" * 64}],
    }


def manifest_of(records, **changes):
    """A sound manifest of ``{name: case_record(…)}``; all labelled cases are trained on."""
    first = next(iter(records.values()))["frames_shape"]
    dimensions = len(first) - 2
    config = PrepareConfig(dimensions=dimensions)
    return {
        "format": 2,
        "config": to_json(config),
        "config_hash": config_hash(config),
        "dimensions": dimensions,
        "spacing": [1.0] * dimensions,
        "channels": [f"channel {number}" for number in range(first[-1])],
        "labels": {"background": 0, **{f"label {n}": n for n in range(1, CLASSES)}},
        "label_values": list(range(CLASSES)),
        "splits": [{"train": [n for n, r in records.items() if r["labelled"]], "validation": []}],
        "data_hash": "ab" * 32,
        "cases": records,
        "findings": [],
        **changes,
    }


def write_store(path: Path, cases, **changes) -> Path:
    """A store of ``{name: (image, labels or None)}``, labels below 4 or 255.

    Args:
        path: its folder.
        cases: image (F, *spatial, C) and labels (F, *spatial) of each.
        changes: keys of the manifest to replace.
    """
    writer = StoreWriter(path)
    for name, (image, labels) in cases.items():
        writer.write_case(name, image, labels)
    records = {name: case_record(image.shape, labels) for name, (image, labels) in cases.items()}
    write_manifest(path, manifest_of(records, **changes))
    return path


def write_manifest(path: Path, manifest) -> None:
    """``manifest.json`` of a store."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
