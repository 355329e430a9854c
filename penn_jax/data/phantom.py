"""Synthetic spines: with tumours, what ``penn demo`` runs on, or with labelled vertebrae.

Anatomy is analytic, in mm, in the coordinates of a curved spine (``spine.py``). Each tissue is
painted over the last one by the share of the voxel it covers (``painting.py``, ``anatomy.py``,
``tumours.py``); coil, noise and storage follow (``scanner.py``). Everything random is a function of
(seed, index).

With tumours the contrast is that of gadolinium-enhanced T1. The spines with vertebrae are lumbar
and of any contrast: a network that has learnt to find these vertebrae is where training on real
scans may start (``penn train --init``).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from penn_jax.config import write_json
from penn_jax.data.anatomy import (
    paint_canal,
    paint_column,
    paint_posterior,
    paint_soft_tissue,
    redraw_contrast,
)
from penn_jax.data.scanner import (
    AXIS_OF,
    coil,
    draw_orientation,
    draw_pose,
    rician,
    store_as,
    stored_affine,
)
from penn_jax.data.spine import (
    LUMBAR,
    SACRAL,
    Chart,
    Spine,
    draw_spine,
    lay_chart,
    nearest_level,
)
from penn_jax.data.tumours import draw_tumour, paint_tumour
from penn_jax.data.volume import write_image
from penn_jax.types import InputError

Target = Literal["tumour", "vertebrae"]
"""What is labelled; ``vertebrae``: the bodies of L1 to L5, one class."""

_NAMES = {
    "tumour": ("Synthetic spines with tumours, gadolinium-enhanced T1", "T1Gd"),
    "vertebrae": ("Synthetic lumbar spines of any contrast", "MR"),
}
"""Of the data set and of its channel."""


class Rendering(NamedTuple):
    """A case before coil and noise."""

    signal: Float32[np.ndarray, "X Y Z"]
    tumour: Float32[np.ndarray, "X Y Z"]
    """Share of the voxel that is tumour."""
    marrow: Float32[np.ndarray, "X Y Z"]
    """Share of the voxel that is healthy marrow of a vertebral body."""
    bodies: Float32[np.ndarray, "X Y Z"]
    """Share of the voxel that is vertebral body: marrow, tumour and cortex."""


def render(rng: np.random.Generator, spine: Spine, c: Chart, tumours: bool = True) -> Rendering:
    """Paint the case from the background to the tumours, if any: none, one or two of them."""
    image = np.zeros(c.beside.shape, np.float32)
    paint_soft_tissue(rng, image, c, spine)
    paint_posterior(rng, image, c, spine)
    canal = paint_canal(rng, image, c, spine)
    marrow, bodies = paint_column(rng, image, c, spine)
    tumour = np.zeros_like(image)
    for _ in range(rng.choice([0, 1, 2], p=[0.1, 0.6, 0.3]) if tumours else 0):
        share = paint_tumour(rng, image, c, draw_tumour(rng, spine, c), canal)
        np.maximum(tumour, share, out=tumour)
    return Rendering(image, tumour, marrow * (1 - tumour), bodies)


def make_phantom(
    seed: int,
    index: int,
    shape: tuple[int, int, int] | None = None,
    spacing: tuple[float, float, float] | None = None,
    target: Target = "tumour",
) -> tuple[Float32[np.ndarray, "X Y Z"], UInt8[np.ndarray, "X Y Z"], Float[np.ndarray, "4 4"]]:
    """Make one case; the same arguments always give the same one.

    Args:
        seed: of the data set.
        index: of the case.
        shape: stored grid; with ``spacing`` in mm, whose largest is taken as across the slices.
            Without both, about 18 sagittal slices of 160×160 voxels of 1.4 mm, 4 mm apart.
        target: what is labelled; there are tumours only where it is they.

    Returns:
        image, labels (1: the target) and affine (voxel to right, anterior, superior in mm), the
        axes stored in any order and direction, the patient lying up to some degrees askew.

    Raises:
        InputError: of ``shape`` and ``spacing`` only one is given.
    """
    if (shape is None) != (spacing is None):
        raise InputError(
            "make_phantom", "only one of shape and spacing", "both or neither", "give the other"
        )
    rng = np.random.default_rng((seed, index))
    if shape is None or spacing is None:
        orientation = draw_orientation(rng)
        pixel, across = rng.uniform(1.2, 1.6), rng.uniform(3.5, 5.0)
        frame_spacing = [across, pixel, pixel]
        frame_shape = rng.integers((16, 150, 150), (21, 171, 171)).tolist()
    else:
        orientation = draw_orientation(rng, spacing)
        stored = np.argsort([AXIS_OF[letter] for letter in orientation])
        frame_spacing = [spacing[axis] for axis in stored]
        frame_shape = [shape[axis] for axis in stored]

    with_tumours = target == "tumour"
    spine = draw_spine(rng, np.multiply(frame_shape, frame_spacing), lumbar=not with_tumours)
    c = lay_chart(spine, frame_shape, frame_spacing)
    signal, share, _, bodies = render(rng, spine, c, with_tumours)
    if not with_tumours:
        signal, share = redraw_contrast(rng, signal), bodies * _is_lumbar(spine, c)
    image = rician(rng, signal * coil(rng, c), rng.uniform(0.015, 0.045))
    image *= np.float32(rng.uniform(300, 1200))
    labels = (share >= 0.5).astype(np.uint8)
    affine = draw_pose(rng) @ stored_affine(orientation, frame_shape, frame_spacing)
    return store_as(image, orientation), store_as(labels, orientation), affine


def _is_lumbar(spine: Spine, c: Chart) -> Bool[np.ndarray, "Y Z"]:
    """Whether the nearest vertebra is one of L1 to L5."""
    level, _ = nearest_level(spine, c.along)
    return (level >= SACRAL) & (level < SACRAL + LUMBAR)


def write_dataset(
    out: Path,
    cases: int,
    seed: int,
    test_cases: int = 0,
    shape: tuple[int, int, int] | None = None,
    spacing: tuple[float, float, float] | None = None,
    target: Target = "tumour",
) -> None:
    """Write phantoms as an nnU-Net raw folder, the labels of the test cases in ``labelsTs``.

    The folder appears under its name only when it is complete.

    Args:
        out: new folder, or an empty one.
        cases: for training and validation; one in five, at least one, is for validation.
        seed: of the data set; the first ``cases`` cases do not depend on ``test_cases``.
        test_cases: held out.
        shape: as for ``make_phantom``.
        spacing: as for ``make_phantom``.
        target: as for ``make_phantom``.

    Raises:
        InputError: the folder holds something, there are too few cases, or a size is not positive.
    """
    if cases < 2:
        raise InputError("phantoms", f"{cases} cases", "at least 2", "raise the number of cases")
    if not all(0 < size < np.inf for size in (*(shape or ()), *(spacing or ()))) or seed < 0:
        raise InputError(
            "phantoms",
            f"shape {shape}, spacing {spacing}, seed {seed}",
            "sizes above 0 and a seed of at least 0",
            "correct them",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "not empty", "a new folder", "name another or remove it")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    names = [f"phantom{index:04d}" for index in range(cases + test_cases)]
    for index, name in enumerate(names):
        part = "Tr" if index < cases else "Ts"
        image, labels, affine = make_phantom(seed, index, shape, spacing, target)
        for folder, file, array in (
            ("images", f"{name}_0000.nii.gz", np.rint(image).astype(np.int16)),
            ("labels", f"{name}.nii.gz", labels),
        ):
            path = partial / f"{folder}{part}" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, array, affine)
    train = cases - max(1, cases // 5)
    split = {"train": names[:train], "val": names[train:cases]}
    (partial / "splits_final.json").write_text(json.dumps([split], indent=1) + "\n")
    name, channel = _NAMES[target]
    write_json(
        partial / "dataset.json",
        {
            "name": name,
            "channel_names": {"0": channel},
            "labels": {"background": 0, target: 1},
            "numTraining": cases,
            "file_ending": ".nii.gz",
        },
    )
    partial.replace(out)
