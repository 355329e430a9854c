"""How many patches a second one core cuts: penn_jax's loader beside MONAI's and TorchIO's.

    python benchmarks/pipeline.py --data PREPARED [--config CONFIG] [--size 96 96] [--seconds 5]

Every program runs in a process of its own, with one thread, on the same processor, and they take
turns; a second is one of processor time of all the process's threads, so that what else the machine
does counts little. Each is built as its users would write it well, and all do the same work on
the training cases of one prepared store: half the patches centred on foreground, rotation and
scaling in one interpolation (linear, labels nearest), mirroring, and batches of equal size.
Intensities are left alone: penn_jax changes them on the device.

penn_jax runs as ``penn train`` runs it. All hold the cases in memory, as prepared; MONAI also an
index of every foreground voxel. It keeps no record of what it did to an item
(``set_track_meta(False)``) and copies no cached item.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from side_by_side import Served, add_data_options, chosen_data, described

from penn_jax.config import PatchConfig, PhotometryConfig
from penn_jax.data.store import Store
from penn_jax.huge_pages import start_with_huge_pages

WARM_UP_SECONDS = 3.0
"""Untimed before each measurement: more than was cut ahead while others had their turn, and enough
that penn_jax, which reads a case when it is first drawn, has all in memory."""
PATCHES_OF_A_VISIT = 16
"""That TorchIO's sampler draws of a case at once, as its queue does to save preparing it anew."""


@dataclass(frozen=True)
class Job:
    """What every program is given."""

    store: str
    cases: tuple[str, ...]
    patches: PatchConfig
    batch_size: int


# ---- the loaders -------------------------------------------------------------------------------


def penn(job: Job) -> Callable[[float], float]:
    from penn_jax.data.loader import stream

    batches = stream(Store(job.store), job.cases, job.patches, job.batch_size, seed=0)
    return lambda seconds: rate((len(batch["image"]) for batch in _endless(batches)), seconds)


def monai(job: Job) -> Callable[[float], float]:
    import torch

    torch.set_num_threads(1)
    batches = iter(monai_loader(Store(job.store), job.cases, job.patches, job.batch_size))
    return lambda seconds: rate((len(batch["image"]) for batch in batches), seconds)


def torchio(job: Job) -> Callable[[float], float]:
    import torch

    torch.set_num_threads(1)
    batches = torchio_batches(Store(job.store), job.cases, job.patches, job.batch_size)
    return lambda seconds: rate((len(batch["image"]) for batch in batches), seconds)


PROGRAMS = {
    "penn_jax": penn,
    "MONAI": monai,
    "TorchIO": torchio,
}


def rate(sizes: Iterator[int], seconds: float) -> float:
    """Patches a second of processor time, once warm; ``sizes`` of the batches, as they come."""
    start = time.process_time()
    while time.process_time() - start < WARM_UP_SECONDS:
        next(sizes)
    patches, start = 0, time.process_time()
    while (taken := time.process_time() - start) < seconds:
        patches += next(sizes)
    return patches / taken


def _endless(batches: Any) -> Iterator[Any]:
    while True:
        yield next(batches)


def frames_of(store: Store, case: str) -> tuple[np.ndarray, np.ndarray]:
    """All of a case, channels first: image (C, F, H, W) and labels (1, F, H, W)."""
    box = tuple(slice(0, size) for size in store.frames_shape(case)[:-1])
    image = np.ascontiguousarray(np.moveaxis(store.image(case, box), -1, 0))
    return image, store.labels(case, box)[None]


def crop_size(patches: PatchConfig, frame: Sequence[int]) -> tuple[int, ...]:
    """Voxels of the part of a frame that holds all that a rotated, shrunk patch may show of it."""
    turn = math.radians(min(patches.rotation_degrees, 45.0))
    reach = patches.scaling * patches.stretch * (math.cos(turn) + math.sin(turn))
    return tuple(
        min(whole, math.ceil(side * reach)) for side, whole in zip(patches.size, frame, strict=True)
    )


def monai_loader(
    store: Store,
    cases: Sequence[str],
    patches: PatchConfig,
    batch_size: int,
    workers: int = 0,
    photometry: PhotometryConfig | None = None,
    pinned: bool = False,
) -> Iterable[Any]:
    """Endless batches of MONAI: ``image`` float32 (B, M, *size), ``label`` uint8 (B, 1, *size).

    Args:
        store: prepared cases.
        cases: those to draw from, all held in memory.
        patches: their size and geometry.
        batch_size: of each batch.
        workers: processes beside this one; 0 cuts them in this one.
        photometry: changes of intensity to make here too; None makes none.
        pinned: copy batches into memory from which a GPU takes them without waiting.
    """
    import torch
    from monai.data.dataloader import DataLoader
    from monai.data.dataset import CacheDataset
    from monai.data.meta_obj import set_track_meta
    from monai.transforms import (
        Compose,
        FgBgToIndicesd,
        RandAffined,
        RandCropByPosNegLabeld,
        RandFlipd,
    )

    set_track_meta(False)
    both, beside = ("image", "label"), patches.neighbours
    frames, *frame = store.frames_shape(cases[0])[:-1]
    crop = crop_size(patches, frame)
    steps: list[Any] = []
    if frames > 1 or crop != tuple(frame):
        steps = [
            FgBgToIndicesd("label"),
            RandCropByPosNegLabeld(
                both,
                "label",
                (1 + 2 * beside, *crop),
                pos=patches.foreground_fraction,
                neg=1 - patches.foreground_fraction,
                fg_indices_key="label_fg_indices",
                bg_indices_key="label_bg_indices",
            ),
        ]

    def slices_as_channels(item: dict[str, Any]) -> dict[str, Any]:
        image, label = item["image"], item["label"]
        return {"image": image.flatten(0, 1), "label": label[:, beside]}

    zoom = patches.scaling * patches.stretch
    steps += [
        slices_as_channels,
        RandAffined(
            both,
            spatial_size=patches.size,
            prob=1.0,
            rotate_range=math.radians(patches.rotation_degrees),
            scale_range=((1 / zoom - 1, zoom - 1),) * 2,
            mode=("bilinear", "nearest"),
            padding_mode="border",
            cache_grid=True,
        ),
        *(RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(2) if patches.flip),
        *(monai_intensity(photometry) if photometry else ()),
        lambda item: {**item, "label": item["label"].to(torch.uint8)},
    ]
    items = [
        dict(zip(both, map(torch.from_numpy, frames_of(store, c)), strict=True)) for c in cases
    ]
    # No step changes its input in place, so that the cache needs no copies.
    data = CacheDataset(items, Compose(steps), num_workers=1, copy_cache=False, progress=False)
    return DataLoader(
        data,
        batch_size=batch_size,
        sampler=torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**9),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # so that all share the cache
        pin_memory=pinned,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )


def monai_intensity(photometry: PhotometryConfig) -> list[Any]:
    """What penn_jax does to intensities in its step, as MONAI's transforms of one item."""
    from monai.transforms import (
        RandAdjustContrastd,
        RandBiasFieldd,
        RandGaussianNoised,
        RandScaleIntensityd,
        RandShiftIntensityd,
    )

    config, always = photometry, {"keys": "image", "prob": 1.0}
    gamma, gain = math.exp(config.gamma), math.exp(config.gain)
    field = (-config.bias_field, config.bias_field)
    made = {
        "gamma": RandAdjustContrastd(gamma=(1 / gamma, gamma), **always),
        "bias_field": RandBiasFieldd(degree=2, coeff_range=field, **always),
        "gain": RandScaleIntensityd(factors=(1 / gain - 1, gain - 1), **always),
        "offset": RandShiftIntensityd(offsets=config.offset, **always),
        "noise": RandGaussianNoised(std=config.noise, **always),
    }
    return [step for name, step in made.items() if getattr(config, name)]


def torchio_batches(
    store: Store, cases: Sequence[str], patches: PatchConfig, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Endless batches of TorchIO: ``image`` float32 (B, M, *size), ``label`` (B, *size)."""
    import torch
    import torchio as tio

    beside = patches.neighbours
    frames, *frame = store.frames_shape(cases[0])[:-1]
    crop = crop_size(patches, frame)
    zoom = patches.scaling * patches.stretch
    turn = patches.rotation_degrees
    steps = [
        tio.RandomAffine(
            scales=(1 / zoom, zoom, 1 / zoom, zoom, 1, 1),
            degrees=(0, 0, 0, 0, -turn, turn),
            image_interpolation="linear",
            label_interpolation="nearest",
        )
    ]
    if patches.flip:
        steps.append(tio.RandomFlip(axes=(0, 1), flip_probability=0.5))
    if crop != patches.size:
        steps.append(tio.CropOrPad((*patches.size, 1 + 2 * beside)))
    change = tio.Compose(steps)

    def subject(case: str) -> tio.Subject:
        # Its axes are (C, W, H, D): slices last.
        image, label = (
            torch.from_numpy(np.moveaxis(x, 1, -1).copy()) for x in frames_of(store, case)
        )
        return tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label))

    subjects = [subject(case) for case in cases]
    fraction = patches.foreground_fraction
    sampler = None
    if frames > 1 or crop != tuple(frame):
        sampler = tio.LabelSampler(
            (*crop, 1 + 2 * beside), "label", label_probabilities={0: 1 - fraction, 1: fraction}
        )
    generator = np.random.default_rng(0)

    def drawn() -> Iterator[Any]:
        while True:
            one = subjects[generator.integers(len(subjects))]
            yield from sampler(one, PATCHES_OF_A_VISIT) if sampler else (one,)

    def cut() -> Iterator[tuple[Any, Any]]:
        for one in drawn():
            found = change(one)
            image, label = found["image"].data, found["label"].data
            yield image.movedim(-1, 1).flatten(0, 1), label[0, ..., beside]

    each = cut()
    while True:
        images, labels = zip(*(next(each) for _ in range(batch_size)), strict=True)
        yield {"image": torch.stack(images), "label": torch.stack(labels)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_data_options(parser)
    options = parser.parse_args(arguments)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    with ExitStack() as stack:
        config, store, cases = chosen_data(options, stack)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # the processes inherit it
        job = Job(str(store.path), tuple(cases), config.patches, config.train.batch_size)
        programs: dict[str, Served] = {}
        for name, build in PROGRAMS.items():
            program = Served(build, job)
            stack.callback(program.close)
            if wrong := program.failure():
                print(f"{name} is left out: {wrong}")
            else:
                programs[name] = program
        rates: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(options.repeats):
            for name, program in programs.items():
                rates[name].append(program(options.seconds))
    print(described(config, cases))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    rivals = [name for name in medians if not name.startswith("penn_jax")]
    print("| loader | patches/s of one core | all repeats |", *(f"/ {name} |" for name in rivals))
    print("|---|---:|---|" + "---:|" * len(rivals))
    for name, found in rates.items():
        columns = [name, f"{medians[name]:,.0f}", ", ".join(f"{value:,.0f}" for value in found)]
        columns += [f"{medians[name] / medians[rival]:.2f}" for rival in rivals]
        print(f"| {' | '.join(columns)} |")


if __name__ == "__main__":
    start_with_huge_pages()  # for every loader, as penn train does
    main()
