"""Segments MRI scans in plain PyTorch: the network, and all that leads from a file to its mask.

::

    python penn_torch.py image.nii.gz mask.nii.gz

This file stands alone: it needs torch, safetensors, numpy and nibabel, and beside it the
``config.json`` and ``model.safetensors`` that ``penn export --to torch`` wrote. To go on training::

    from penn_torch import load
    network, config = load(".")  # a torch.nn.Module, from (B, M, *spatial) to (B, K, *spatial)

nibabel is imported where scans are read and written: :func:`load` does without it.

Letters of shapes: B batch, C channels, K classes, F frames (the slices of a scan, or one for the
whole scan in 3-D), M channels of the network's input: those of a slice and of its neighbours.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import leaky_relu


class InputError(ValueError):
    """A mistake in what the user gave, told in one line."""


# ---- the network -------------------------------------------------------------------------------

GROUP_CHANNELS = 8
"""Channels of one group in group normalisation."""

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_DECONVOLUTION = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}


class Network(nn.Module):
    """Conv stages down to a coarse grid, deconvolution stages back to the input's size.

    Layers bear the names that they have in JAX: ``reduce_0`` is the stem, ``conv_k`` and
    ``deconv_k`` are the stages on grid k (0 the finest), ``reduce_k`` leads from grid k - 1 to k,
    ``expand_k`` from k to k - 1, ``head_k`` to the classes.

    Args:
        inputs: M, channels of the image, slices beside it included.
        classes: K.
        dimensions: spatial axes, 2 or 3.
        stem: stride of the first convolution and of the last deconvolution.
        channels: features of each stage; each stage after the first halves the grid.
        blocks: 3-wide convolutions in each stage.
        skip: how a conv stage's features join the deconvolution stage of the same grid.
        residual: each stage adds its first feature map to its last.
        norm: ``batch``, ``group`` or ``none`` (a bias).
        dropout: share of the deepest stage's channels dropped while training.
        deep_supervision: while training every deconvolution stage has scores of its own.

    Args of the call:
        x: images, (B, M, *spatial); every spatial size a multiple of stem · 2^(stages - 1).

    Returns:
        Class scores (logits), (B, K, *spatial); while training with deep supervision a tuple of
        them, the finest first, each half the size of the one before.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        dimensions: int,
        stem: int,
        channels: Sequence[int],
        blocks: int,
        skip: Literal["concat", "add", "none"],
        residual: bool,
        norm: Literal["batch", "group", "none"],
        dropout: float = 0.0,
        deep_supervision: bool = False,
    ):
        super().__init__()
        self.stages, self.stem, self.skip = len(channels), stem, skip
        convolution, deconvolution = _CONVOLUTION[dimensions], _DECONVOLUTION[dimensions]
        before = inputs
        for grid, features in enumerate(channels):
            factor = stem if grid == 0 else 2
            if factor > 1:
                reduce = convolution(before, features, factor, stride=factor, bias=False)
                self.add_module(f"reduce_{grid}", reduce)
                self.add_module(f"reduce_norm_{grid}", normalisation(norm, features, dimensions))
                before = features
            stage = Stage(before, features, blocks, residual, norm, dimensions)
            self.add_module(f"conv_{grid}", stage)
            before = features
        self.dropout = _DROPOUT[dimensions](dropout)
        for grid in range(self.stages - 2, -1, -1):
            features = channels[grid]
            expand = deconvolution(channels[grid + 1], features, 2, stride=2, bias=False)
            self.add_module(f"expand_{grid + 1}", expand)
            self.add_module(f"expand_norm_{grid + 1}", normalisation(norm, features, dimensions))
            before = 2 * features if skip == "concat" else features
            stage = Stage(before, features, blocks, residual, norm, dimensions)
            self.add_module(f"deconv_{grid}", stage)
        self.heads = max(1, self.stages - 1) if deep_supervision else 1
        for grid in range(self.heads):
            head = deconvolution(channels[grid], classes, stem, stride=stem)
            self.add_module(f"head_{grid}", head)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        layer = self.get_submodule
        skips = []
        for grid in range(self.stages):
            if grid > 0 or self.stem > 1:
                x = leaky_relu(layer(f"reduce_norm_{grid}")(layer(f"reduce_{grid}")(x)))
            x = layer(f"conv_{grid}")(x)
            skips.append(x)
        x = self.dropout(x)
        coarser = []
        for grid in range(self.stages - 2, -1, -1):
            x = leaky_relu(layer(f"expand_norm_{grid + 1}")(layer(f"expand_{grid + 1}")(x)))
            if self.skip == "concat":
                x = torch.cat([x, skips[grid]], dim=1)
            elif self.skip == "add":
                x = x + skips[grid]
            x = layer(f"deconv_{grid}")(x)
            if self.training and 0 < grid < self.heads:
                coarser.insert(0, layer(f"head_{grid}")(x))
        scores = layer("head_0")(x)
        return (scores, *coarser) if coarser else scores


class Stage(nn.Module):
    """``blocks`` times: 3-wide convolution, normalisation, leaky rectifier."""

    def __init__(
        self,
        inputs: int,
        features: int,
        blocks: int,
        residual: bool,
        norm: Literal["batch", "group", "none"],
        dimensions: int,
    ):
        super().__init__()
        self.blocks, self.residual = blocks, residual and blocks > 1
        for block in range(blocks):
            before = inputs if block == 0 else features
            convolution = _CONVOLUTION[dimensions](before, features, 3, padding=1, bias=False)
            self.add_module(f"conv_{block}", convolution)
            self.add_module(f"norm_{block}", normalisation(norm, features, dimensions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.get_submodule
        x = first = leaky_relu(layer("norm_0")(layer("conv_0")(x)))
        for block in range(1, self.blocks):
            x = layer(f"norm_{block}")(layer(f"conv_{block}")(x))
            if self.residual and block == self.blocks - 1:
                x = x + first
            x = leaky_relu(x)
        return x


class Bias(nn.Module):
    """What stands where nothing is normalised."""

    def __init__(self, features: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias.view(-1, *[1] * (x.ndim - 2))


def normalisation(
    norm: Literal["batch", "group", "none"], features: int, dimensions: int
) -> nn.Module:
    """The layer after a convolution; its epsilon of 1e-5 is PyTorch's own."""
    if norm == "batch":
        return _BATCH_NORM[dimensions](features)
    if norm == "group":
        return nn.GroupNorm(math.gcd(features, max(1, features // GROUP_CHANNELS)), features)
    return Bias(features)


# ---- loading it --------------------------------------------------------------------------------


def load(folder: str | Path, weights: str | Path | None = None) -> tuple[Network, dict[str, Any]]:
    """The network of an exported folder, in evaluation mode, and the folder's ``config.json``.

    Args:
        folder: with ``config.json`` and ``model.safetensors``.
        weights: a safetensors file of fine-tuned weights to take instead.

    Raises:
        InputError: a file is not the one that was exported, or the weights are of another network.
        OSError: a file cannot be read.
    """
    # Here, for a MONAI bundle has this file too, and may run where safetensors is not installed.
    from safetensors import SafetensorError
    from safetensors.torch import load as tensors

    folder = Path(folder)
    config = read_config(folder)
    path = Path(weights) if weights else folder / "model.safetensors"
    content = path.read_bytes()
    if not weights and hashlib.sha256(content).hexdigest() != config["files"][path.name]:
        raise InputError(f"{path}: not the file that was exported; copy the folder again")
    network = Network(**config["network"])
    try:
        network.load_state_dict(tensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{path}: {error}") from error
    return network.eval(), config


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of an exported folder, checked against its own checksum.

    Raises:
        InputError: it is damaged or something else.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        checksum = config.pop("sha256")
        text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    except (ValueError, KeyError, TypeError, AttributeError):
        checksum, text = "", "something else"
    if hashlib.sha256(text.encode()).hexdigest() != checksum:
        raise InputError(f"{path}: not the file that was exported; copy the folder again")
    return config


# ---- from a scan to frames ---------------------------------------------------------------------

SPACING_TOLERANCE = 0.01
"""Spacings closer than this share are taken as equal: no interpolation for a rounding error."""
PERCENTILES = (0.5, 99.5)
BODY_THRESHOLD = 0.05
LARGEST_INTENSITY, LEAST_CONTRAST = 1e30, 1e-30
"""Between these, sums, differences and deviations neither overflow nor vanish in float32."""
SPACINGS, LARGEST_SHEAR = (1e-3, 100.0), 0.01
"""Least and greatest voxel size, mm, and the greatest cosine between the axes of voxels."""


@dataclass(frozen=True)
class Grid:
    """How the voxels of a scan are laid out as frames, in canonical (RAS) orientation."""

    shape: tuple[int, ...]
    """Of the scan, (X, Y, Z)."""
    axes: tuple[int, ...]
    """The scan's axis of each oriented axis: the slice axis first in 2-D; R, A, S in 3-D."""
    flips: tuple[int, ...]
    """Oriented axes that run against their axis of the scan."""
    sizes: tuple[int, ...]
    """Voxels of a frame along each spatial axis."""


def plan(
    shape: Sequence[int], affine: np.ndarray, dimensions: int, spacing: Sequence[float] | None
) -> Grid:
    """Choose the slice axis and the size of the frames of a scan.

    The slice axis in 2-D is a singleton axis if there is one, otherwise the coarsest, the last
    canonical axis among equals. An axis of n voxels of s mm becomes round(n s / t) voxels for a
    target of t mm; the field of view is kept.

    Args:
        shape: (X, Y, Z).
        affine: (4, 4), from voxel to mm.
        dimensions: spatial axes of a frame, 2 or 3.
        spacing: target of the frames' spatial axes in mm, None for the scan's own.
    """
    from nibabel.orientations import io_orientation

    distances, orientation = voxel_sizes(affine), io_orientation(affine)
    file_axis = [int(axis) for axis in np.argsort(orientation[:, 0])]
    order = [0, 1, 2]
    if dimensions == 2:
        singleton = [c for c in order if shape[file_axis[c]] == 1] or order
        coarsest = max(distances[file_axis[c]] for c in singleton) * (1 - SPACING_TOLERANCE)
        chosen = max(c for c in singleton if distances[file_axis[c]] >= coarsest)
        order = [chosen] + [c for c in order if c != chosen]
    axes = tuple(file_axis[c] for c in order)
    spatial = axes[-dimensions:]
    native = [float(distances[axis]) for axis in spatial]
    sizes = [
        shape[a] if abs(s / t - 1) <= SPACING_TOLERANCE else max(1, round(shape[a] * s / t))
        for a, s, t in zip(spatial, native, spacing or native, strict=True)
    ]
    flips = tuple(k for k, axis in enumerate(axes) if orientation[axis, 1] < 0)
    return Grid(tuple(map(int, shape)), axes, flips, tuple(map(int, sizes)))


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Distance between voxels along each axis of a scan, mm."""
    return np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))


def to_frames(scan: np.ndarray, grid: Grid) -> np.ndarray:
    """Orient, slice, resample and normalise a scan: (C, X, Y, Z) to float32 (C, F, *sizes)."""
    frames = oriented(scan, grid)
    for axis, size in enumerate(grid.sizes, start=2):
        frames = resample(frames, axis, size)
    return np.stack([normalise(channel) for channel in frames])


def oriented(array: np.ndarray, grid: Grid) -> np.ndarray:
    """A view of an array (…, X, Y, Z) as frames (…, F, *spatial) in which nothing is resampled."""
    lead = array.ndim - 3
    array = array.transpose(*range(lead), *(lead + axis for axis in grid.axes))
    array = np.flip(array, tuple(lead + axis for axis in grid.flips))
    return array if len(grid.sizes) == 2 else np.expand_dims(array, lead)


def resample(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Interpolate one axis linearly to ``size`` voxels over the same field of view.

    Voxel i of the new axis sits at (i + 1/2) n / size - 1/2 of the old one. Shrinking by a factor
    f first smooths with a Gaussian of (f - 1) / 2 voxels, cut at four of them.
    """
    length = array.shape[axis]
    if length == size:
        return array
    array = np.moveaxis(array, axis, -1).astype(np.float32)
    deviation = max(0.0, (length / size - 1) / 2)
    if radius := int(4 * deviation + 0.5):
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
        room = [(0, 0)] * (array.ndim - 1) + [(radius, radius)]
        padded = np.pad(array.astype(np.float64), room, mode="edge")
        terms = (w * padded[..., k : k + length] for k, w in enumerate(weights / weights.sum()))
        array = np.asarray(sum(terms), np.float32)
    position = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    low = np.floor(position).astype(int)
    below, above = array[..., low], array[..., np.minimum(low + 1, length - 1)]
    result = below + (position - low).astype(np.float32) * (above - below)
    return np.moveaxis(result, -1, axis)


def normalise(values: np.ndarray) -> np.ndarray:
    """Scale one channel of a whole scan, with lo and hi its 0.5 and 99.5 percentiles::

        y = clip(x, lo, hi),   body = {y > lo + 0.05 (hi - lo)},   z = (y - mean_body y) / sd_body y

    The extremes stand for equal percentiles, all voxels for a body without spread; a constant
    channel becomes 0.
    """
    values = np.asarray(values, np.float32)
    low, high = np.percentile(values, PERCENTILES).astype(np.float32)
    if high - low < LEAST_CONTRAST:
        low, high = values.min(), values.max()
    if high - low < LEAST_CONTRAST:
        return np.zeros_like(values)
    clipped = np.clip(values, low, high)
    centre = deviation = np.float32(0)
    for part in (clipped[clipped > low + np.float32(BODY_THRESHOLD) * (high - low)], clipped):
        height = (part - low).astype(np.float64)
        centre, deviation = np.float32(low + height.mean()), np.float32(height.std())
        if deviation >= 1e-6 * (high - low):
            break
    return (clipped - centre) / deviation


# ---- from frames to a mask ---------------------------------------------------------------------


def predict(
    network: nn.Module,
    frames: np.ndarray,
    neighbours: int,
    stride: int,
    halo: int | None,
    most_voxels: int,
    mirror: bool,
) -> Iterator[np.ndarray]:
    """Class probabilities (K, *sizes) of one frame after the other.

    A frame is continued with its edge up to a multiple of the network's total stride and
    evaluated as a whole, or in tiles that share twice the halo where it is large: with the same
    result, as the scores of a voxel depend on the voxels within the halo alone.

    Args:
        network: from (B, M, *spatial) to scores (B, K, *spatial).
        frames: (C, F, *sizes), from :func:`to_frames`.
        neighbours: slices on each side that join as channels.
        stride: the network's total stride.
        halo: voxels on which a voxel's scores depend, None where it is the whole frame.
        most_voxels: of a tile.
        mirror: average the probabilities over the mirrorings along every set of axes.
    """
    device = next(network.parameters()).device
    count, sizes = frames.shape[1], frames.shape[2:]
    axes = range(2, 2 + len(sizes))
    mirrorings = [
        [axis for axis, mirrored in zip(axes, choice, strict=True) if mirrored]
        for choice in product((False, True) if mirror else (False,), repeat=len(sizes))
    ]
    for number in range(count):
        wanted = np.clip(range(number - neighbours, number + neighbours + 1), 0, count - 1)
        image = frames[:, wanted].swapaxes(0, 1).reshape(-1, *sizes)
        image = np.pad(image, [(0, 0), *((0, -n % stride) for n in sizes)], mode="edge")
        x = torch.from_numpy(image[np.newaxis]).to(device)
        result = np.empty(0)
        for box, reach in tiles(image.shape[1:], stride, halo, most_voxels):
            with torch.inference_mode():
                tile, likely = x[(..., *reach)], torch.zeros(1, device=device)
                for flip in mirrorings:
                    likely = likely + network(tile.flip(flip)).softmax(dim=1).flip(flip)
            inside = [
                slice(b.start - r.start, b.stop - r.start) for b, r in zip(box, reach, strict=True)
            ]
            values = (likely / len(mirrorings))[(0, ..., *inside)].cpu().numpy()
            if not result.size:
                result = np.empty((len(values), *image.shape[1:]), np.float32)
            result[(..., *box)] = values
        yield result[(..., *(slice(0, n) for n in sizes))]


def tiles(
    shape: Sequence[int], stride: int, halo: int | None, most_voxels: int
) -> Iterator[tuple[list[slice], list[slice]]]:
    """Boxes that make up a frame, and the tile around each: the box and its halo.

    The longest axis is halved until a tile has no more than ``most_voxels``, or no axis is longer
    than its halo.
    """
    size, around = list(shape), halo or 0

    def voxels() -> int:
        return math.prod(min(n, s + 2 * around) for n, s in zip(shape, size, strict=True))

    while halo is not None and max(size) > max(stride, halo) and voxels() > most_voxels:
        longest = size.index(max(size))
        size[longest] = -(-size[longest] // (2 * stride)) * stride
    for corner in product(*(range(0, n, s) for n, s in zip(shape, size, strict=True))):
        box = [slice(a, min(a + s, n)) for a, s, n in zip(corner, size, shape, strict=True)]
        yield (
            box,
            [
                slice(max(0, b.start - around), min(n, b.stop + around))
                for b, n in zip(box, shape, strict=True)
            ],
        )


def to_mask(probabilities: Iterable[np.ndarray], grid: Grid) -> np.ndarray:
    """The most likely class of each voxel of the scan, uint8 (X, Y, Z).

    The probabilities of each frame are brought back to the scan's own sampling and compared there.
    """
    mask = np.empty(grid.shape, np.uint8)
    for frame, likely in zip(oriented(mask, grid), probabilities, strict=True):
        for axis, size in enumerate(frame.shape, start=1):
            likely = resample(likely, axis, size)
        frame[...] = likely.argmax(axis=0)
    return mask


def drop_small(mask: np.ndarray, spacing: Iterable[float], smallest: float) -> None:
    """Make background of each component of a class (26 neighbours) below a volume, in place.

    Args:
        mask: classes (X, Y, Z), 0 is background.
        spacing: of the voxels, mm.
        smallest: volume in mm³ of the smallest component that stays; 0 keeps all.
    """
    for number in np.unique(mask[mask > 0]) if smallest > 0 else ():
        box = tuple(slice(i.min(), i.max() + 1) for i in np.nonzero(mask == number))
        part = mask[box] == number
        component = components(part)
        volume = np.bincount(component.ravel()) * math.prod(spacing)
        small = volume < smallest * (1 - 1e-6)  # a rounding error of the spacing decides nothing
        mask[box][part & small[component]] = 0


def components(part: np.ndarray) -> np.ndarray:
    """For each voxel of a set the number of one voxel of its component, 0 outside of the set."""
    root = np.where(part, np.arange(1, part.size + 1).reshape(part.shape), 0)
    while True:
        grown = root
        for axis in range(part.ndim):
            padded = np.pad(grown, [(int(a == axis),) * 2 for a in range(part.ndim)])
            ends = (padded.take(range(k, k + part.shape[axis]), axis) for k in (0, 2))
            grown = np.maximum(grown, np.maximum(*ends))
        # One step to the neighbours, then as far as the voxel that was found has come.
        grown = np.append(0, np.where(part, grown, 0))
        grown = grown[grown[1:]].reshape(part.shape)
        if np.array_equal(grown, root):
            return root
        root = grown


# ---- files -------------------------------------------------------------------------------------

_GEOMETRY = (
    *("dim", "pixdim", "dim_info", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
"""Fields of a NIfTI header that say where the voxels lie, and no more."""


def segment(
    images: Sequence[Path], mask: Path, network: nn.Module, config: Mapping[str, Any]
) -> None:
    """Segment one scan: read its channels, write its mask on the same grid.

    Args:
        images: a NIfTI file for each channel.
        mask: NIfTI file to write.
        network: from :func:`load`, on the device that is to evaluate it.
        config: from :func:`load`.

    Raises:
        InputError: a file cannot be used, or the mask would overwrite a scan.
        OSError: a file cannot be read or written.
    """
    if not mask.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{mask}: not a NIfTI name; end it in .nii.gz")
    if mask.resolve() in [image.resolve() for image in images]:
        raise InputError(f"{mask}: is the scan itself; give the mask another name")
    scan, like = read_scan(images, config["scan"]["channels"])
    grid = plan(
        scan.shape[1:], like.affine, config["scan"]["dimensions"], config["scan"]["spacing"]
    )
    classes = to_mask(predict(network, to_frames(scan, grid), **config["evaluation"]), grid)
    drop_small(classes, voxel_sizes(like.affine), config["mask"]["smallest_component"])
    write_mask(mask, np.asarray(config["mask"]["values"], np.uint8)[classes], like)


def read_scan(images: Sequence[Path], channels: Sequence[str]) -> tuple[np.ndarray, Any]:
    """The channels of a scan, float32 (C, X, Y, Z), and the first file's NIfTI image.

    Raises:
        InputError: too few or too many files, one that cannot be used, or one on another grid than
            the first: a corner of it lies more than a tenth of a voxel off.
        OSError: a file cannot be read.
    """
    if len(images) != len(channels):
        named = ", ".join(channels)
        raise InputError(f"{len(images)} images, but the network takes {len(channels)}: {named}")
    volumes = [read_channel(path) for path in images]
    first, like = volumes[0]
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in first.shape))])
    for path, (array, image) in zip(images, volumes, strict=True):
        moved = np.abs(corners @ (image.affine - like.affine).T).max()
        if array.shape != first.shape or moved > 0.1 * voxel_sizes(like.affine).min():
            raise InputError(f"{path}: lies on another grid than {images[0]}; resample it")
    return np.stack([array for array, _ in volumes]), like


def read_channel(path: Path) -> tuple[np.ndarray, Any]:
    """The voxels of a file, float32 (X, Y, Z), and its NIfTI image.

    Raises:
        InputError: it is no whole NIfTI file of three axes and real numbers, or cannot be used.
        OSError: it cannot be read.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        if path.name.endswith(".gz"):
            with gzip.open(path) as stream:
                while stream.read(1 << 20):
                    pass  # nibabel stops before the checksum at the end
        image: Any = nib.load(path)
        if image.get_data_dtype().kind not in "iuf":
            raise TypeError(f"its voxels are {image.get_data_dtype()}")
        with np.errstate(all="ignore"):  # what overflows is told below
            array = np.asarray(image.dataobj, np.float32)
    except (
        *(ImageFileError, HeaderDataError, gzip.BadGzipFile, zlib.error),
        *(EOFError, MemoryError, OverflowError, TypeError, ValueError),
    ) as error:
        wrong = str(error) or type(error).__name__
        raise InputError(f"{path}: cannot be read as an image ({wrong})") from error
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(f"{path}: is no NIfTI file; convert it")
    if int(image.header["xyzt_units"]) % 8 in (1, 3):  # metres, micrometres
        raise InputError(f"{path}: its unit of length is not mm; convert its header")
    if array.ndim < 3 or math.prod(array.shape[3:]) != 1 or not array.size:
        raise InputError(f"{path}: its shape is {array.shape}, expected three axes")
    array = array.reshape(array.shape[:3])
    check_scan(path, array, np.asarray(image.affine))
    return array, image


def check_scan(name: object, array: np.ndarray, affine: np.ndarray) -> None:
    """Make sure that a scan lies somewhere and shows something.

    Args:
        name: of the scan, for the message.
        array: its voxels, of any shape.
        affine: (4, 4), from voxel to mm.

    Raises:
        InputError: it does not.
    """
    sizes = voxel_sizes(affine)
    if not np.isfinite(affine).all() or sizes.min() < SPACINGS[0] or sizes.max() > SPACINGS[1]:
        raise InputError(f"{name}: expected an affine with voxels of {SPACINGS} mm")
    axes = affine[:3, :3] / sizes
    if np.abs(axes.T @ axes - np.eye(3)).max() > LARGEST_SHEAR:
        raise InputError(f"{name}: expected an affine of right angles; resample it")
    low, high = float(array.min()), float(array.max())
    finite = -LARGEST_INTENSITY <= low <= high <= LARGEST_INTENSITY
    if not finite or high - low < LEAST_CONTRAST:
        raise InputError(f"{name}: expected finite intensities with contrast")


def write_mask(path: Path, mask: np.ndarray, like: Any) -> None:
    """Write a mask that overlays its scan in any viewer, whole or not at all.

    Nothing but the geometry of the scan's header is kept: its texts may name the patient.

    Args:
        path: ends in ``.nii.gz`` or ``.nii``.
        mask: uint8 (X, Y, Z).
        like: the scan as nibabel loads it.
    """
    import nibabel as nib

    header = type(like.header)()
    for name in _GEOMETRY:
        header[name] = like.header[name]
    header.set_data_dtype(np.uint8)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        nib.save(type(like)(mask.reshape(like.shape), None, header), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- the command -------------------------------------------------------------------------------


def find_device(name: str) -> torch.device:
    """A device of PyTorch by its name.

    Raises:
        InputError: it is not here.
    """
    try:
        return torch.zeros(0, device=name).device
    except (AssertionError, RuntimeError) as error:  # a build without CUDA raises the former
        raise InputError(f"--device {name}: PyTorch has no such device here") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Segment one scan; what is wrong is told in one line, with exit code 2."""
    parser = argparse.ArgumentParser(prog="penn_torch", description="NIfTI scan to NIfTI mask.")
    parser.add_argument("images", type=Path, nargs="+", help="the scan, one file for each channel")
    parser.add_argument("mask", type=Path, help="file to write")
    parser.add_argument("--weights", type=Path, help="fine-tuned weights, a safetensors file")
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=here, help=f"of PyTorch (default: {here})")
    options = parser.parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False  # a mask must not depend on the device
    try:
        device = find_device(options.device)
        network, config = load(Path(__file__).resolve().parent, options.weights)
        segment(options.images, options.mask, network.to(device), config)
    except (OSError, ImportError, InputError) as error:  # ImportError: nibabel or safetensors
        print(f"penn_torch: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
