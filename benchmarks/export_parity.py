"""Whether exports are the network they come from: logits, and labels from NIfTI to NIfTI.

    python benchmarks/export_parity.py --modes
    python benchmarks/export_parity.py --run RUN --scans FILE [FILE …] [--python PYTHON]
    python benchmarks/export_parity.py --phantom

``--modes``: networks of every kind of skip, normalisation and number of axes, with random weights
and batch statistics. ``--run``: a trained network, on frames of the scans. ``--phantom``: a 3-D
run, trained for a minute on synthetic spines, on its test cases. Logits are compared with jax on
the CPU, unfolded; labels with those of ``penn predict --engine jax``, *decided* being the voxels
whose two most likely classes differ by more than 1e-4. The exported PyTorch file and the MONAI
bundle run in processes of their own, the former by ``--python``, in whose environment torch,
safetensors, numpy and nibabel are enough. The command ends with 1 if anything exceeds 1e-4.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import nibabel as nib
import numpy as np
import torch

from penn_jax.config import Config, ModelConfig, OptimConfig, PatchConfig, TrainConfig
from penn_jax.export import onnx, penn_torch
from penn_jax.export.stablehlo import to_stablehlo
from penn_jax.export.torch import to_torch
from penn_jax.exporting import export
from penn_jax.model.fold import fold
from penn_jax.model.network import Network, initialise, total_stride
from penn_jax.run import load_model, network_channels
from penn_jax.segment import predict

MOST = 1e-4
FORMATS = ("torch", "onnx", "stablehlo", "monai")


class Trained(NamedTuple):
    """A network as every writer takes it: variables first, then these."""

    variables: Any
    config: ModelConfig
    classes: int
    channels: int
    dimensions: int


# ---- logits ------------------------------------------------------------------------------------


def differences(network: Trained, image: np.ndarray) -> dict[str, float]:
    """Largest difference of logits to jax on the CPU, for each format.

    Args:
        network: unfolded.
        image: (B, *spatial, C), every size a multiple of the total stride.
    """
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu):
        apply = jax.jit(Network(network.config, network.classes).apply)
        expected = np.asarray(apply(network.variables, image)[0])
    first = np.ascontiguousarray(np.moveaxis(image, -1, 1))
    folded, config = fold(network.variables, network.config)
    found = {
        "PyTorch": _torch(network, first),
        "PyTorch, folded": _torch(network._replace(variables=folded, config=config), first),
        "ONNX Runtime": _onnx(network, first),
        "StableHLO": _stablehlo(network, image),
    }
    return {name: float(np.abs(logits - expected).max()) for name, logits in found.items()}


def _torch(network: Trained, image: np.ndarray) -> np.ndarray:
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.inference_mode():
        logits: Any = to_torch(*network).to(device)(torch.from_numpy(image).to(device))
    return np.moveaxis(logits.cpu().numpy(), 1, -1)


def _onnx(network: Trained, image: np.ndarray) -> np.ndarray:
    import onnxruntime

    graph = onnx.to_onnx(*network).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.moveaxis(np.asarray(session.run(["logits"], {"image": image})[0]), 1, -1)


def _stablehlo(network: Trained, image: np.ndarray) -> np.ndarray:
    return np.asarray(jax.export.deserialize(bytearray(to_stablehlo(*network))).call(image))


def modes() -> Iterator[tuple[str, Trained, np.ndarray]]:
    """Networks of every mode, with what they are called and images for them."""
    rng = np.random.default_rng(0)

    def drawn(path: Any, leaf: Any) -> np.ndarray:
        """As after training: no scale or variance is 1, no bias or mean 0."""
        values, name = rng.normal(size=leaf.shape).astype(np.float32), path[-1].key
        if name == "kernel":
            return values * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
        return 0.3 * values if name in ("bias", "mean") else np.exp(0.3 * values)

    for skip, norm, dimensions in product(
        ("concat", "add", "none"), ("batch", "group", "none"), (2, 3)
    ):
        residual = skip == "add"
        config = ModelConfig(stem=2, channels=(16, 32, 48), skip=skip, norm=norm, residual=residual)
        network, size = Network(config, 4), (64, 48) if dimensions == 2 else (24, 16, 32)
        shapes = jax.eval_shape(
            lambda n=network, d=dimensions: initialise(n, jax.random.key(0), 2, d)
        )
        variables = jax.tree_util.tree_map_with_path(drawn, shapes)
        image = rng.normal(size=(2, *size, 2)).astype(np.float32)
        yield (
            f"{dimensions}-D, skip {skip}, norm {norm}{', residual' if residual else ''}",
            Trained(variables, config, 4, 2, dimensions),
            image,
        )


# ---- a run -------------------------------------------------------------------------------------


def of_run(run: Path, scan: Sequence[Path], most: int = 4) -> tuple[Trained, np.ndarray]:
    """The network of a run and some frames of a scan, from its middle."""
    config, card, variables = load_model(run)
    channels = network_channels(card, config)
    network = Trained(variables, config.model, len(card["labels"]), channels, card["dimensions"])
    array, like = penn_torch.read_scan(scan, card["channels"])
    grid = penn_torch.plan(array.shape[1:], like.affine, card["dimensions"], card["spacing"])
    frames = penn_torch.to_frames(array, grid)
    reach, count = config.patches.neighbours, frames.shape[1]
    images = []
    for middle in range(max(0, count // 2 - most // 2), count)[:most]:
        wanted = np.clip(range(middle - reach, middle + reach + 1), 0, count - 1)
        images.append(frames[:, wanted].swapaxes(0, 1).reshape(-1, *grid.sizes))
    stride = total_stride(config.model)
    room = [(0, 0), (0, 0), *((0, -n % stride) for n in grid.sizes)]
    return network, np.moveaxis(np.pad(np.stack(images), room, mode="edge"), 1, -1)


def ways(folder: Path, python: str) -> dict[str, Callable[[Path, Path], Path]]:
    """The ways from a scan to a mask through each export; each returns the mask's file."""

    def standalone(name: str) -> Callable[[Path, Path], Path]:
        def run(scan: Path, out: Path) -> Path:
            mask = out / "mask.nii.gz"
            program = [python, folder / name / "penn_torch.py", scan, mask]
            subprocess.run(list(map(str, program)), check=True)
            return mask

        return run

    def bundle(scan: Path, out: Path) -> Path:
        scans = out / "scans"
        scans.mkdir()
        (scans / scan.name).symlink_to(scan.resolve())
        program = [sys.executable, "-m", "monai.bundle", "run"]
        program += ["--config_file", "configs/inference.json"]
        program += ["--dataset_dir", str(scans), "--output_dir", str(out / "masks")]
        subprocess.run(program, check=True, cwd=folder / "monai", capture_output=True)
        return next((out / "masks").iterdir())

    def model(name: str) -> Callable[[Path, Path], Path]:
        return lambda scan, out: predict([folder / name, scan], out, progress=False)[0]

    return {
        "penn_torch.py": standalone("torch"),
        "penn_torch.py, folded": standalone("folded"),
        **{f"penn predict, {name}": model(name) for name in FORMATS},
        "monai.bundle run": bundle,
    }


def compare_labels(
    run: Path, scans: Sequence[Path], python: str
) -> dict[str, tuple[int, int, int]]:
    """For each way: decided voxels that differ, all that differ, all voxels."""
    counts: dict[str, tuple[int, int, int]] = {}
    with tempfile.TemporaryDirectory(prefix="export_parity_") as name:
        folder = Path(name)
        for to in FORMATS:
            export(run, to, folder / to)  # type: ignore[arg-type]
        export(run, "torch", folder / "folded", folded=True)
        for number, scan in enumerate(scans):
            out = folder / f"jax_{number}"
            (mask,) = predict([run, scan], out, {}, True, engine="jax", progress=False)
            expected, likely = _read(mask), np.sort(_read(next(out.glob("*_prob*"))), axis=-1)
            decided = likely[..., -1] - likely[..., -2] > MOST
            for way, segment in ways(folder, python).items():
                there = folder / f"{way}_{number}"
                there.mkdir()
                differing = _read(segment(scan, there)) != expected
                more = (int((differing & decided).sum()), int(differing.sum()), differing.size)
                counts[way] = tuple(map(sum, zip(counts.get(way, (0, 0, 0)), more, strict=True)))  # type: ignore[assignment]
    return counts


def _read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


def phantom_run(folder: Path) -> tuple[Path, list[Path]]:
    """A 3-D run, trained for some steps on synthetic spines, and scans that it has not seen."""
    from penn_jax.config import PrepareConfig
    from penn_jax.data.phantom import write_dataset
    from penn_jax.data.prepare import prepare
    from penn_jax.train import train

    write_dataset(folder / "raw", 8, seed=0, test_cases=2, shape=(96, 80, 20), spacing=(2, 2, 4))
    store = prepare(folder / "raw", folder / "store", PrepareConfig(dimensions=3), progress=False)
    config = Config(
        name="phantom-3d",
        patches=PatchConfig(size=(16, 48, 48)),
        model=ModelConfig(stem=2, channels=(16, 32, 48)),
        optim=OptimConfig(average=0.9),
        train=TrainConfig(batch_size=2, max_steps=60, checkpoint_every=0),
    )
    train(config, store, folder / "run", progress=False)
    return folder / "run", sorted((folder / "raw" / "imagesTs").iterdir())


# ---- the report --------------------------------------------------------------------------------


def report_run(name: str, run: Path, scans: Sequence[Path], python: str) -> float:
    """Print what one run's exports give; the worst of all figures, differing labels as infinite."""
    found = differences(*of_run(run, scans[:1]))
    print(f"\n{name}: largest difference of logits", flush=True)
    for way, value in found.items():
        print(f"  {way:24} {value:.1e}")
    print("labels: decided voxels that differ, all that differ, voxels", flush=True)
    counts = compare_labels(run, scans, python)
    for way, (wrong, differing, voxels) in counts.items():
        print(f"  {way:24} {wrong} {differing} {voxels:,}", flush=True)
    wrong = sum(each[0] for each in counts.values())
    return float("inf") if wrong else max(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--modes", action="store_true", help="every mode, random weights")
    parser.add_argument("--phantom", action="store_true", help="train a 3-D run and compare it")
    parser.add_argument("--run", type=Path, help="run of penn train")
    parser.add_argument("--scans", type=Path, nargs="+", help="scans of one channel")
    parser.add_argument("--python", default=sys.executable, help="of an environment without jax")
    options = parser.parse_args()
    if bool(options.run) != bool(options.scans):
        parser.error("give --run and --scans together")
    worst = 0.0
    if options.modes:
        for name, network, image in modes():
            found = differences(network, image)
            worst = max(worst, *found.values())
            values = "  ".join(f"{way} {value:.1e}" for way, value in found.items())
            print(f"{name:36} {values}", flush=True)
    if options.run:
        worst = max(worst, report_run(str(options.run), options.run, options.scans, options.python))
    if options.phantom:
        with tempfile.TemporaryDirectory(prefix="export_phantom_") as folder:
            run, scans = phantom_run(Path(folder))
            worst = max(worst, report_run("phantom, 3-D", run, scans, options.python))
    print(f"\nworst: {worst:.1e}, at most {MOST:.0e} is right")
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
