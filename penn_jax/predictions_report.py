"""``penn report`` on a folder of masks without references: one HTML page of what was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from penn_jax.data.grid import to_frames
from penn_jax.data.volume import (
    check_same_grid,
    frame_grid,
    read_geometry,
    read_image,
    read_labels,
)
from penn_jax.predictions import FILE, Prediction, read_predictions
from penn_jax.progress import bar
from penn_jax.report.html import write_page
from penn_jax.report.prediction_page import prediction_page, telling_cases
from penn_jax.report.slices import Views, views
from penn_jax.types import InputError


def holds_predictions(folder: Path) -> bool:
    """Whether a folder is one of ``penn predict``."""
    return (folder / FILE).is_file()


def report_predictions(folder: Path, out: Path | None = None, progress: bool = True) -> Path:
    """Write the page of a folder of masks.

    Args:
        folder: of ``penn predict``, with its ``predictions.json``.
        out: the page; ``report.html`` in the folder where it is None.
        progress: show a progress line where stderr is a terminal.

    Returns:
        The page.

    Raises:
        InputError: ``predictions.json`` is missing, damaged, or of models of different classes.
        OSError: the page cannot be written.
    """
    out = folder / "report.html" if out is None else out
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(out, "cannot be a page", "a file in a folder that exists", "set --out")
    predictions = read_predictions(folder)
    _check_classes(folder, predictions)
    pictures: dict[str, Views] = {}
    not_drawn: list[str] = []
    chosen = telling_cases(predictions)
    with bar("reporting", progress) as shown:
        for number, (title, case) in enumerate(chosen.items()):
            shown.update(number / len(chosen), case)
            try:
                pictures[title] = _views(folder, case, predictions[case])
            except InputError as error:
                not_drawn.append(f"{case} ({error.source}: {error.wrong})")
    name = folder.resolve().name
    write_page(out, prediction_page(name, predictions, pictures, not_drawn))
    return out


def _check_classes(folder: Path, predictions: dict[str, Prediction]) -> None:
    classes = {tuple(prediction["classes"]) for prediction in predictions.values()}
    if len(classes) != 1:
        raise InputError(
            folder / FILE,
            "has masks of different classes" if classes else "tells of no mask",
            "masks of models of the same classes",
            "predict them into folders of their own",
        )


def _views(folder: Path, case: str, prediction: Prediction) -> Views:
    """The scan and its mask as they lie in their files, sliced along the coarsest axis."""
    paths, path = [Path(scan) for scan in prediction["scan"]], folder / f"{case}.nii.gz"
    for needed in (*paths, path):
        if not needed.exists():
            raise InputError(needed, "is no longer there", "the scan and its mask", "predict again")
    check_same_grid(path, read_geometry(path), paths[0], read_geometry(paths[0]))
    scan = read_image(paths)
    grid = frame_grid(scan, 2, None)
    classes = np.zeros(256, np.uint8)
    for number, found in enumerate(prediction["classes"].values(), start=1):
        classes[found["value"]] = number
    mask = classes[to_frames(read_labels(path).array, grid, order=0)]
    image = to_frames(scan.array, grid, order=1)[..., 0]
    return views(case, image, np.zeros_like(mask), mask, grid.spacing)
