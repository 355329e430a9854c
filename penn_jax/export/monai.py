"""The network as a MONAI bundle: what MONAI's tools run, with the same frames and masks.

::

    configs/metadata.json    what goes in and out, by MONAI's schema
    configs/inference.json   load, prepare, evaluate, write: python -m monai.bundle run
    models/model.pt          state dict
    scripts/                 penn_torch.py and penn_monai.py, whole
    docs/README.md           the model card
    LICENSE
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from penn_jax.config import write_json

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
_VERSION = "0.1.0"
_TRIED = {"monai": "1.6.1", "pytorch-ignite": "0.5.5"}
"""Versions that ran a bundle, for an environment that has neither: a bundle only names them."""
_SCRIPTS = ("penn_torch.py", "penn_monai.py")
_LICENCE = (
    "scripts/ and configs/: Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0\n"
    "models/: the terms of whoever trained the network and of its data; see docs/README.md\n"
)


def write_bundle(
    folder: Path, content: Mapping[str, Any], card: str, metrics: Mapping[str, float]
) -> None:
    """Write all of a bundle but its weights.

    Args:
        folder: an existing folder.
        content: ``config.json`` of the export.
        card: the model card.
        metrics: scores by name, for the metadata.
    """
    for name in ("configs", "scripts", "docs"):
        (folder / name).mkdir()
    write_json(folder / "configs" / "metadata.json", bundle_metadata(content, metrics))
    write_json(folder / "configs" / "inference.json", inference(content))
    (folder / "scripts" / "__init__.py").write_text(
        '"""The parts of this bundle that are code."""\n'
    )
    for name in _SCRIPTS:
        shutil.copyfile(Path(__file__).with_name(name), folder / "scripts" / name)
    (folder / "docs" / "README.md").write_text(card, encoding="utf-8")
    (folder / "LICENSE").write_text(_LICENCE, encoding="utf-8")


def inference(content: Mapping[str, Any]) -> dict[str, Any]:
    """``configs/inference.json``: every folder and device can be replaced on MONAI's command line.

    Args:
        content: ``config.json`` of the export.
    """
    frames = {name: content["scan"][name] for name in ("dimensions", "spacing")}
    mask = {name: content["mask"][name] for name in ("values", "smallest_component")}
    scripts = "scripts.penn_monai"
    return {
        "imports": ["$import scripts"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/masks'",
        "weights": "$@bundle_root + '/models/model.pt'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "scripts.penn_torch.Network", **content["network"]},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader",
                 "ensure_channel_first": True},
                {"_target_": f"{scripts}.ToFramesd", "keys": "image", **frames},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": {"_target_": f"{scripts}.find_scans", "folder": "@dataset_dir",
                     "channels": content["scan"]["channels"]},
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {"_target_": f"{scripts}.FrameInferer", **content["evaluation"]},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": f"{scripts}.ToMaskd", "keys": "pred", "image": "image",
                 **frames, **mask},
                {"_target_": f"{scripts}.SaveMaskd", "keys": "pred", "output_dir": "@output_dir"},
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": [
            "$setattr(torch.backends.cudnn, 'allow_tf32', False)",
            "$@network.load_state_dict(torch.load(@weights, @device, weights_only=True))",
            "$@evaluator.run()",
        ],
    }  # fmt: skip


def bundle_metadata(content: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """``configs/metadata.json``, by MONAI's schema.

    Args:
        content: ``config.json`` of the export.
        metrics: scores by name.
    """
    scan, network, labels = content["scan"], content["network"], content["mask"]["labels"]
    neighbours = content["evaluation"]["neighbours"]
    inputs = [
        channel if offset == 0 else f"{channel}, slice {offset:+d}"
        for offset in range(-neighbours, neighbours + 1)
        for channel in scan["channels"]
    ]
    # MONAI's expressions know one free number for all axes.
    shape = [f"{content['evaluation']['stride']}*n"] * network["dimensions"]
    tensor = {"type": "image", "spatial_shape": shape, "dtype": "float32", "value_range": [],
              "is_patch_data": False}  # fmt: skip
    structures = ", ".join(name for name, number in labels.items() if number)
    return {
        "schema": SCHEMA,
        "version": _VERSION,
        "changelog": {_VERSION: "exported by penn_jax"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {
            name: _version(name) for name in ("nibabel", "pytorch-ignite")
        },
        "name": content["run"]["config"]["name"],
        "task": f"Segmentation of {structures} in MRI",
        "description": "A convolution-deconvolution network, trained by penn_jax",
        "authors": "whoever trained it with penn_jax",
        "copyright": "see LICENSE",
        "data_type": "nibabel",
        "image_classes": f"MRI: {', '.join(scan['channels'])}",
        "pred_classes": ", ".join(f"{number}: {name}" for name, number in labels.items()),
        "eval_metrics": dict(metrics),
        "intended_use": "research; not a medical device",
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "format": "magnitude",
                    "modality": "MR",
                    "num_channels": network["inputs"],
                    "channel_def": {str(k): name for k, name in enumerate(inputs)},
                }
            },
            "outputs": {
                "pred": {
                    **tensor,
                    "format": "labels",
                    "num_channels": network["classes"],
                    "channel_def": {str(number): name for name, number in labels.items()},
                }
            },
        },
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return _TRIED[package]
