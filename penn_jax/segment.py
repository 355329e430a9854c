"""``penn predict``: scans in, masks out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from penn_jax.config import Config
from penn_jax.data.scans import find_scans
from penn_jax.data.volume import write_mask, write_probabilities
from penn_jax.model.network import Network
from penn_jax.predict.case import most_likely, predict_case
from penn_jax.predict.dense import Forward
from penn_jax.progress import bar
from penn_jax.run import load_model
from penn_jax.task import tiling
from penn_jax.types import InputError


def predict(
    model: Path,
    inputs: Sequence[Path],
    out: Path,
    probabilities: bool = False,
    mirror: bool | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Write ``<case>.nii.gz`` for every scan: uint8, same shape, affine and geometry.

    Args:
        model: a run of ``penn train``.
        inputs: scans, or folders of scans; several channels are told by ``_0000``, ``_0001``, ….
        out: folder of the masks; made where it is missing.
        probabilities: also write ``<case>_probabilities.nii.gz``, float32 (X, Y, Z, K).
        mirror: average over all mirrorings; None does as the run's config says.
        overwrite: replace masks that are there already.
        progress: show a progress line where stderr is a terminal.

    Returns:
        The masks written.

    Raises:
        InputError: the model or a scan cannot be used. Masks already written stay; none is half
            written.
    """
    config, card, variables = load_model(model)
    if card["task"] != "segmentation":
        raise InputError(model, "was pre-trained only", "a run of penn train", "train with --init")
    cases = find_scans(inputs, len(card["channels"]))
    for name, paths in cases.items():
        target = out / f"{name}.nii.gz"
        if target.resolve() in [path.resolve() for path in paths]:
            raise InputError(
                out, f"would overwrite the scan {paths[0]}", "another folder", "set --out"
            )
        if target.exists() and not overwrite:
            raise InputError(
                target, "exists", "a new file", "add --overwrite or choose another --out"
            )
    forward = probability_forward(
        config, len(card["labels"]), variables, config.predict.mirror if mirror is None else mirror
    )
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with bar("predicting", progress) as shown:
        for number, (name, paths) in enumerate(cases.items()):
            shown.update(number / len(cases), name)
            scan, likely = predict_case(
                paths, forward, tiling(config), card["dimensions"], card["spacing"]
            )
            path = out / f"{name}.nii.gz"
            write_mask(path, most_likely(likely, card["label_values"]), scan)
            if probabilities:
                write_probabilities(out / f"{name}_probabilities.nii.gz", likely, scan)
            written.append(path)
    return written


def probability_forward(
    config: Config, classes: int, variables: Mapping[str, Any], mirror: bool
) -> Forward:
    """The network as a compiled function from tiles to class probabilities.

    Args:
        config: of the run.
        classes: K.
        variables: of the network.
        mirror: average the probabilities over the mirrorings along every set of axes.
    """
    network = Network(config.model, classes)

    @jax.jit
    def forward(variables: Any, tiles: jax.Array) -> jax.Array:
        axes = range(1, tiles.ndim - 1)
        flips = [
            tuple(axis for axis, flipped in zip(axes, choice, strict=True) if flipped)
            for choice in product((False, True), repeat=len(axes))
        ]
        total = jnp.zeros((*tiles.shape[:-1], classes), jnp.float32)
        used = flips if mirror else flips[:1]
        for flip in used:
            logits = network.apply(variables, jnp.flip(tiles, flip))[0]
            total = total + jnp.flip(jax.nn.softmax(logits, axis=-1), flip)
        return total / len(used)

    return lambda tiles: np.asarray(forward(variables, tiles))
