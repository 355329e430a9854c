"""Predicts a synthetic volume of 512 × 512 × 512 voxels with a small random network.

python benchmarks/large_volume.py --size 512 --classes 2 25 --dimensions 2 3

For each network it runs ``penn predict`` as a process of its own and prints the seconds, the peak
memory of that process (as ``/usr/bin/time -v`` does), and how many voxels differ from the naive
way: the network evaluated at once on a crop and its surroundings. Each step is a process, since a
process's peak counts what it was started from.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CROP = 64
"""Voxels along each axis of a compared part."""
SPACING = (1.0, 1.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 25])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 3], choices=(2, 3))
    parser.add_argument("--spacing", type=float, help="of the network's frames, mm")
    parser.add_argument("--options", nargs="*", default=[], help="of penn predict, without --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _in_a_process(make_scan, root / "scan.nii.gz", options.size)
        for dimensions in options.dimensions:
            for classes in options.classes:
                run = root / f"run{dimensions}_{classes}"
                _in_a_process(make_run, run, dimensions, classes, options.spacing)
                seconds, peak = predict(run, root, [f"--{word}" for word in options.options])
                if options.spacing is None:
                    _in_a_process(compare, run, root)
                print(
                    f"{options.size}³ voxels, {dimensions}-D, {classes} classes: "
                    f"{seconds:.0f} s, peak {peak / 1024**3:.2f} GiB",
                    flush=True,
                )


def _in_a_process(function, *arguments) -> None:
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def make_scan(path: Path, size: int) -> None:
    """Waves and noise, float32: the largest type that a scan of this size commonly has."""
    from penn_jax.data.volume import write_image

    rng = np.random.default_rng(0)
    waves = [np.sin(np.linspace(0, k, size, dtype=np.float32)) for k in (9, 14, 23)]
    scan = waves[0][:, None, None] + waves[1][:, None] + waves[2]
    for slab in scan:
        slab += rng.normal(0, 0.2, slab.shape).astype(np.float32)
    write_image(path, scan, np.diag((*SPACING, 1.0)))


def make_run(folder: Path, dimensions: int, classes: int, spacing: float | None) -> None:
    """A run directory as ``penn train`` leaves it, with weights as drawn before training."""
    import jax

    from penn_jax.config import Config, ModelConfig, PatchConfig
    from penn_jax.model.network import Network, initialise
    from penn_jax.optim.checkpoint import Checkpoints
    from penn_jax.progress import warn
    from penn_jax.run import ModelCard, opened

    config = Config(
        patches=PatchConfig(size=(32,) * dimensions),
        model=ModelConfig(stem=2, channels=(8, 16, 32), blocks=1),
    )
    card = ModelCard(
        channels=["T1"],
        labels={f"class {number}": number for number in range(classes)},
        label_values=list(range(classes)),
        dimensions=2 if dimensions == 2 else 3,
        spacing=None if spacing is None else [spacing] * dimensions,
        data_hash="synthetic",
        split_hash="synthetic",
        fold=0,
        task="segmentation",
    )
    variables = initialise(Network(config.model, classes), jax.random.key(0), 1, dimensions)
    with opened(folder, config, card, resume=False):
        model = jax.tree.map(np.asarray, variables)
        Checkpoints(folder / "checkpoints", warn).save(1, model, model, {}, 1.0)


def predict(run: Path, root: Path, options: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of ``penn predict``."""
    command = [sys.executable, "-m", "penn_jax.cli", "predict", str(run), str(root / "scan.nii.gz")]
    command += ["--out", str(root / f"masks_{run.name}"), *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def compare(run: Path, root: Path) -> None:
    """Print how many labels of a corner and of the middle differ from the naive way."""
    from penn_jax.data.volume import read_labels
    from penn_jax.engine import probability_forward
    from penn_jax.model.network import halo, total_stride
    from penn_jax.predict.case import read_case
    from penn_jax.run import load_model

    config, card, variables = load_model(run)
    forward = probability_forward(config, len(card["labels"]), variables, mirror=False)
    case = read_case([root / "scan.nii.gz"], card["dimensions"], card["spacing"])
    mask = read_labels(root / f"masks_{run.name}" / "scan.nii.gz").array
    size, reach = mask.shape[0], halo(config.model)
    middle = (size - CROP) // 2 // total_stride(config.model) * total_stride(config.model)
    for start in (0, middle):
        crop = slice(start, start + CROP)
        if card["dimensions"] == 2:  # whole slices along the last axis, RAS as it is stored
            likely = [forward(frame[None])[0] for frame in case.frames[crop]]
            expected = np.stack([each.argmax(-1) for each in likely], axis=-1)
            found = mask[..., crop]
        else:
            around = slice(max(0, start - reach), min(size, start + CROP + reach))
            likely = forward(case.frames[:, around, around, around])[0]
            inside = slice(start - around.start, start - around.start + CROP)
            expected = likely[inside, inside, inside].argmax(-1)
            found = mask[crop, crop, crop]
        print(f"  {np.count_nonzero(found != expected)} of {found.size} labels differ from naive")
        print(f"  classes there: {np.unique(found).tolist()}")


if __name__ == "__main__":
    main()
