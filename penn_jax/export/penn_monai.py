"""The parts of a MONAI bundle that are code: transforms and an inferer around ``penn_torch.py``.

Both files lie in the bundle's ``scripts``; ``configs/inference.json`` puts them together::

    LoadImaged → ToFramesd → FrameInferer (the network) → ToMaskd → SaveMaskd
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from monai.transforms.transform import MapTransform

from .penn_torch import (
    Grid,
    check_scan,
    drop_small,
    plan,
    predict,
    to_frames,
    to_mask,
    voxel_sizes,
    write_mask,
)

_ENDINGS = (".nii.gz", ".nii")


def find_scans(folder: str, channels: Sequence[str]) -> list[dict[str, list[str]]]:
    """The scans of a folder, one dictionary each; several channels end in _0000, _0001, ….

    Raises:
        ValueError: there is none, or a channel of a case is missing, or there twice.
    """
    paths = [path for path in Path(folder).iterdir() if path.name.endswith(_ENDINGS)]
    cases: dict[str, list[Path]] = {}
    for path in sorted(path for path in paths if not path.name.startswith(".")):
        name = _stem(path)[: -len("_0000")] if len(channels) > 1 else _case(path)
        cases.setdefault(name, []).append(path)
    for name, files in cases.items():
        wanted = [f"{name}_{number:04d}" for number in range(len(channels))]
        found = [_stem(path) for path in files]
        if found != wanted and (len(channels) > 1 or found != [name]):
            raise ValueError(f"{folder}: found {', '.join(found)}, expected {', '.join(wanted)}")
    if not cases:
        raise ValueError(f"{folder}: expected scans that end in {' or '.join(_ENDINGS)}")
    return [{"image": [str(path) for path in files]} for files in cases.values()]


class ToFramesd(MapTransform):
    """A loaded scan (C, X, Y, Z) to normalised frames (C, F, *sizes)."""

    def __init__(self, keys: Any, dimensions: int, spacing: Sequence[float] | None):
        super().__init__(keys)
        self.dimensions, self.spacing = dimensions, spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            scan = image.numpy()
            for channel in scan:
                check_scan(image.meta["filename_or_obj"], channel, _affine(image))
            frames = to_frames(scan, _grid(image, self.dimensions, self.spacing))
            result[key] = MetaTensor(torch.from_numpy(frames), meta=image.meta)
        return result


class FrameInferer(Inferer):
    """Frames (1, C, F, *sizes) to class probabilities (1, K, F, *sizes).

    Args:
        options: of ``predict`` in ``penn_torch.py``: neighbouring slices, tiling, mirroring.
    """

    def __init__(self, **options: Any):
        self.options = options

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if not isinstance(network, torch.nn.Module) or len(inputs) != 1:
            raise ValueError("expected a torch.nn.Module and one scan a batch")
        frames = np.asarray(inputs[0].cpu())
        likely = list(predict(network, frames, **self.options))
        return torch.from_numpy(np.stack(likely, axis=1)[np.newaxis])


class ToMaskd(MapTransform):
    """Class probabilities (K, F, *sizes) to a mask (1, X, Y, Z) on the grid of the scan.

    Args:
        keys: of the probabilities.
        image: key of the frames that they belong to.
        dimensions: spatial axes of a frame.
        spacing: of the frames, as for :class:`ToFramesd`.
        values: what each class is called in the mask.
        smallest_component: components below this volume in mm³ become background.
    """

    def __init__(
        self,
        keys: Any,
        image: str,
        dimensions: int,
        spacing: Sequence[float] | None,
        values: Sequence[int],
        smallest_component: float,
    ):
        super().__init__(keys)
        self.image, self.dimensions, self.spacing = image, dimensions, spacing
        self.values, self.smallest_component = np.asarray(values, np.uint8), smallest_component

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        image = result[self.image]
        grid, affine = _grid(image, self.dimensions, self.spacing), _affine(image)
        for key in self.key_iterator(result):
            likely = np.moveaxis(np.asarray(result[key].cpu()), 1, 0)
            classes = to_mask(likely, grid)
            drop_small(classes, voxel_sizes(affine), self.smallest_component)
            mask = torch.from_numpy(self.values[classes][np.newaxis])
            result[key] = MetaTensor(mask, meta=image.meta)
        return result


class SaveMaskd(MapTransform):
    """Write a mask (1, X, Y, Z) as ``<case>.nii.gz`` into a folder, with the scan's geometry.

    Raises:
        ValueError: it would overwrite the scan.
    """

    def __init__(self, keys: Any, output_dir: str):
        super().__init__(keys)
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for key in self.key_iterator(dict(data)):
            scan = Path(data[key].meta["filename_or_obj"])
            path = self.output_dir / f"{_case(scan)}.nii.gz"
            if path.resolve() == scan.resolve():
                raise ValueError(f"{path}: is the scan itself; give another --output_dir")
            write_mask(path, np.asarray(data[key][0].cpu(), np.uint8), nib.load(scan))
        return data


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _case(path: Path) -> str:
    """What a scan is called, by its only or first file."""
    return _stem(path).removesuffix("_0000")


def _grid(image: Any, dimensions: int, spacing: Sequence[float] | None) -> Grid:
    shape = [int(size) for size in image.meta["spatial_shape"]]
    return plan(shape, _affine(image), dimensions, spacing)


def _affine(image: Any) -> np.ndarray:
    return np.asarray(image.meta["original_affine"], np.float64)
