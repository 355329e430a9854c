"""``penn export``: a trained network for other programs, in a folder that says all about itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from penn_jax.config import Config, to_json
from penn_jax.data.remote import Place
from penn_jax.engine import Model, load_models
from penn_jax.export.card import evaluation_scores, model_card, read_evaluation
from penn_jax.export.folder import FORMAT, check_new, whole_folder, write_export
from penn_jax.export.monai import write_bundle
from penn_jax.export.onnx import check_installed, to_onnx
from penn_jax.export.stablehlo import to_stablehlo
from penn_jax.export.weights import network_options, safetensors_bytes, torch_state
from penn_jax.exported import IMPORTED, pytorch
from penn_jax.model.fold import fold
from penn_jax.predict.dense import WHOLE_FRAME
from penn_jax.run import ModelCard, network_channels
from penn_jax.task import tiling
from penn_jax.types import InputError

Format = Literal["torch", "onnx", "stablehlo", "monai"]

_STANDALONE = Path(__file__).parent / "export" / "penn_torch.py"


def export(
    model: Place, to: Format, out: Path, folded: bool = False, metrics: Path | None = None
) -> None:
    """Write a trained network for other programs.

    Args:
        model: a run, or an export that holds weights.
        to: ``torch``: safetensors and one file of PyTorch that goes from NIfTI to NIfTI;
            ``onnx``: a graph; ``stablehlo``: a program for whatever runs XLA; ``monai``: a bundle.
        out: new folder; written whole or not at all.
        folded: fold batch normalisation into the convolutions; graph and program always are.
        metrics: JSON file of ``penn evaluate``, for the model card.

    Raises:
        InputError: the model, the metrics or the folder cannot be used, or a package is missing.
    """
    check_new(out)  # before the work, not only after it
    (loaded,) = load_models([model])
    if loaded.kind != "weights":
        raise InputError(
            model, f"is an export to {loaded.kind}", "a run, or an export to torch or monai",
            "export the run",
        )  # fmt: skip
    evaluation = None if metrics is None else read_evaluation(metrics)
    if folded:
        variables, network = fold(loaded.variables, loaded.config.model)
        config = dataclasses.replace(loaded.config, model=network)
        loaded = dataclasses.replace(loaded, variables=variables, config=config)
    content = {FORMAT: to, **description(loaded.config, loaded.card)}
    scores = logged_scores(model)
    text = model_card(content, to, evaluation, scores, (model / IMPORTED).is_file())
    weights = _weights(loaded, to)
    with whole_folder(out) as folder:
        write_export(folder, content, weights)
        if to == "monai":
            write_bundle(folder, content, text, evaluation_scores(evaluation or {"mean": {}}))
        else:
            (folder / "README.md").write_text(text, encoding="utf-8")
        if to == "torch":
            shutil.copyfile(_STANDALONE, folder / _STANDALONE.name)


def description(config: Config, card: ModelCard) -> dict[str, Any]:
    """What leads from a scan to its mask, and the run it came from, as plain JSON types."""
    plan = tiling(config, card)
    classes, channels = len(card["labels"]), network_channels(card, config)
    return {
        "network": network_options(config.model, classes, channels, card["dimensions"]),
        "scan": {
            "channels": card["channels"],
            "dimensions": card["dimensions"],
            "spacing": card["spacing"],
        },
        "evaluation": {
            "neighbours": plan.neighbours,
            "stride": plan.stride,
            "halo": None if plan.halo == WHOLE_FRAME else plan.halo,
            "most_voxels": plan.most_voxels,
            "mirror": config.predict.mirror,
        },
        "mask": {
            "labels": card["labels"],
            "values": card["label_values"],
            "smallest_component": config.predict.smallest_component,
        },
        "run": {"config": to_json(config), "card": dict(card)},
    }


def logged_scores(run: Place) -> Mapping[str, float] | None:
    """The best validation in a run's log, by its mean Dice; None where there is none."""
    best: dict[str, float] | None = None
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        for point in map(json.loads, lines):
            dice = point.get("dice")
            if dice is not None and (best is None or dice >= best["dice"]):
                best = {"dice": dice, **_pooled(point)}
    except (OSError, ValueError, AttributeError, TypeError):
        pass  # a card without metrics says so
    return best


def _pooled(point: Mapping[str, Any]) -> dict[str, float]:
    return {name: x for name, x in point.items() if name.startswith("pooled_") and x is not None}


def _weights(model: Model, to: Format) -> bytes:
    config, card = model.config, model.card
    if to == "torch":
        return safetensors_bytes(torch_state(model.variables))
    if to == "monai":
        return pytorch().checkpoint_bytes(torch_state(model.variables))
    classes, channels = len(card["labels"]), network_channels(card, config)
    network = (model.variables, config.model, classes, channels, card["dimensions"])
    if to == "stablehlo":
        return to_stablehlo(*network)
    check_installed("--to onnx", "export to torch or stablehlo")
    return to_onnx(*network).SerializeToString()
