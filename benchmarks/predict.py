"""How fast prediction is: penn_jax against MONAI's sliding window on the same weights.

    python benchmarks/predict.py --run RUN --data RAW [--part val] [--limit N] [--engine both]
    python benchmarks/predict.py --run RUN --data RAW --single
    python benchmarks/predict.py --slices

The first compares. Each program runs in a process of its own, on the same processors: it reads each
scan, prepares it by the project's own code, predicts, and writes the mask; ours by the function
behind ``penn predict``, MONAI's in the loop that its users write. MONAI evaluates the weights as a
PyTorch network (``export/penn_torch.py``, evaluation and inference mode, channels last where
that is faster) in windows of the training patch's size, overlap 0.5, Gaussian weights, as many
windows at once as the run's config has for us; slices go batch-wise, with their neighbours as
channels. Models are loaded and warmed up before the clock starts; of the repeats the fastest
counts. Dice is the mean over cases; peak is the process's resident memory, libraries included.

``--single`` times whole commands, process start and all: ``penn predict`` on one scan after one
run that fills the compile cache. ``--slices`` compares on slices of 256×256 with the network of a
default config and random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from penn_jax.data.grid import from_frames, normalise, to_frames
from penn_jax.data.raw import find_cases
from penn_jax.data.volume import frame_grid, read_image, write_image, write_mask
from penn_jax.predict.case import most_likely

if TYPE_CHECKING:
    pass

OVERLAP = 0.5
SINGLE_REPEATS = 3
SLICES, SIDE = 100, 256

Cases = dict[str, list[Path]]
"""The files of each case."""

Predict = Callable[[Cases, Path], None]
"""Reads each case and writes its mask into a folder."""


# ---- what each process measures ----------------------------------------------------------------


class Stopwatch:
    """Adds up the seconds that a function takes."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = self.function(*arguments)
        self.seconds += time.perf_counter() - start
        return result


def measure(job: dict[str, Any], program: str, out: Path) -> dict[str, Any]:
    """Predict every case; the seconds of the fastest repeat, in all and of the network alone."""
    name, network, predict = monai(job) if program == "monai" else penn(job, program)
    cases = paths_of(job)
    first = next(iter(cases))
    with tempfile.TemporaryDirectory() as folder:
        predict({first: cases[first]}, Path(folder))
    found = []
    for _ in range(job["repeats"]):
        network.seconds, start = 0.0, time.perf_counter()
        predict(cases, out)
        found.append((time.perf_counter() - start, network.seconds))
    seconds, of_network = min(found)
    return {"name": name, "seconds": seconds, "network": of_network, "peak": peak_memory()}


def paths_of(job: dict[str, Any]) -> Cases:
    return {name: [Path(path) for path in paths] for name, paths in job["cases"].items()}


def penn(job: dict[str, Any], engine: Engine) -> tuple[str, Stopwatch, Predict]:
    """``penn predict`` itself, with its model loaded and its network under a stopwatch."""
    from penn_jax import engine as networks
    from penn_jax import segment
    from penn_jax.run import enable_compile_cache

    enable_compile_cache()
    run = Path(job["run"] or "a default config with random weights")
    model = networks.Model(run, *load(job["run"]))
    network = Stopwatch(networks.model_forward(model, model.config.predict.mirror, engine))

    def predict(cases: Cases, out: Path) -> None:
        scans = [path for paths in cases.values() for path in paths]
        with (
            mock.patch.object(segment, "load_models", return_value=[model]),
            mock.patch.object(networks, "model_forward", return_value=network),
        ):
            segment.predict([run, *scans], out, overwrite=True, engine=engine, progress=False)

    return f"penn_jax, {engine}", network, predict


def monai(job: dict[str, Any]) -> tuple[str, Stopwatch, Predict]:
    """What a user of MONAI and PyTorch does; this process never loads jax."""
    import torch
    from monai.inferers.utils import sliding_window_inference

    from penn_jax.export.penn_torch import Network

    torch.set_num_threads(job["threads"])
    twin = Network(**job["twin"]["options"])
    twin.load_state_dict(torch.load(job["twin"]["weights"], weights_only=True))
    twin.eval()
    network = Stopwatch(twin)
    flat = job["dimensions"] == 2
    layouts = {
        "channels first": torch.contiguous_format,
        "channels last": torch.channels_last if flat else torch.channels_last_3d,
    }
    layout = "channels first"

    def predict_one(paths: list[Path], mask: Path) -> None:
        scan = read_image(paths)
        grid = frame_grid(scan, job["dimensions"], job["spacing"])
        frames = normalise(to_frames(scan.array, grid, order=1))
        frames = with_neighbours(frames, job["neighbours"])
        images = torch.from_numpy(np.moveaxis(frames, -1, 1).copy())
        with torch.inference_mode():
            logits = sliding_window_inference(
                images.contiguous(memory_format=layouts[layout]),
                job["window"],
                job["batch_size"],
                network,
                overlap=OVERLAP,
                mode="gaussian",
            )
            likely = torch.softmax(logits, dim=1).numpy()
        likely = from_frames(np.moveaxis(likely, 1, -1), grid, order=1)
        write_mask(mask, np.asarray(job["label_values"], np.uint8)[most_likely(likely)], scan)

    def predict(cases: Cases, out: Path) -> None:
        for case, paths in cases.items():
            predict_one(paths, out / f"{case}.nii.gz")

    first = next(iter(paths_of(job).values()))
    needed = {}
    for layout in layouts:
        twin.to(memory_format=layouts[layout])
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):  # the first call of a shape prepares it
                network.seconds = 0.0
                predict({"first": first}, Path(folder))
        needed[layout] = network.seconds
    layout = min(needed, key=lambda name: needed[name])
    twin.to(memory_format=layouts[layout])
    return f"MONAI, {layout}", network, predict


def with_neighbours(frames: np.ndarray, neighbours: int) -> np.ndarray:
    """Slices beside each slice as further channels, the outermost ones repeated."""
    places = np.arange(len(frames))
    shifts = range(-neighbours, neighbours + 1)
    wanted = [np.clip(places + shift, 0, len(frames) - 1) for shift in shifts]
    return np.concatenate([frames[index] for index in wanted], axis=-1)


def peak_memory() -> int:
    """Bytes of VmHWM; ru_maxrss would count the parent's peak too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def load(run: str | None) -> tuple[Any, Any, Any]:
    """Config, model card and variables of a run, or of a default network with random weights."""
    import jax

    from penn_jax.config import Config
    from penn_jax.model.network import Network, initialise
    from penn_jax.run import load_model

    if run is not None:
        return load_model(Path(run))
    config = Config()
    labels = {"background": 0, "foreground": 1}
    card = {"channels": ["T1"], "labels": labels, "label_values": [0, 1], "dimensions": 2}
    card |= {"spacing": None, "task": "segmentation"}
    variables = initialise(Network(config.model, len(labels)), jax.random.key(0), 1, 2)
    return config, card, jax.device_get(variables)


# ---- the comparison ----------------------------------------------------------------------------


def compare(job: dict[str, Any], programs: Sequence[str], labels: Path | None) -> None:
    """Measure each program in its own process and print a table."""
    rows = {}
    with tempfile.TemporaryDirectory(prefix="predict_benchmark_") as folder:
        export_twin(job, Path(folder))
        slices = sum(frames_of(paths, job) for paths in job["cases"].values())
        (Path(folder) / "job.json").write_text(json.dumps(job))
        print(f"{len(job['cases'])} scans, {slices} frames, {job['threads']} threads")
        print("| program | s in all | s of network | frames/s | of network | Dice | peak RSS, MB |")
        print("|---|---|---|---|---|---|---|")
        for program in programs:
            out = Path(folder) / program
            out.mkdir()
            command = [sys.executable, __file__, "--measure", program, "--work", folder]
            row = json.loads(subprocess.check_output(command).splitlines()[-1])
            rows[program] = row
            columns = [
                row["name"],
                f"{row['seconds']:.2f}",
                f"{row['network']:.2f}",
                f"{slices / row['seconds']:.1f}",
                f"{slices / row['network']:.1f}",
                f"{dice(out, labels, job):.4f}" if labels else "–",
                f"{row['peak'] / 1e6:.0f}",
            ]
            print(f"| {' | '.join(columns)} |", flush=True)
    for program, row in rows.items():
        if program != "monai" and "monai" in rows:
            ratios = [rows["monai"][key] / row[key] for key in ("seconds", "network", "peak")]
            text = "{:.2f} in all, {:.2f} of the network, {:.2f} of memory".format(*ratios)
            print(f"MONAI / {row['name']}: {text}")


def make_job(options: argparse.Namespace, cases: dict[str, list[Path]]) -> dict[str, Any]:
    """What the measuring processes must know, as plain JSON types."""
    config, card, _ = load(options.run and str(options.run))
    return {
        "run": options.run and str(options.run),
        "cases": {name: [str(path) for path in paths] for name, paths in cases.items()},
        "repeats": options.repeats,
        "threads": len(os.sched_getaffinity(0)),
        "window": config.patches.size,
        "batch_size": config.predict.batch_size,
        "neighbours": config.patches.neighbours,
        **{name: card[name] for name in ("dimensions", "spacing", "labels", "label_values")},
    }


def export_twin(job: dict[str, Any], folder: Path) -> None:
    """Put the PyTorch network of the job's run into a folder, and where it is into the job."""
    from penn_jax.export.torch import checkpoint_bytes
    from penn_jax.export.weights import network_options, torch_state
    from penn_jax.run import network_channels

    config, card, variables = load(job["run"])
    (folder / "twin.pt").write_bytes(checkpoint_bytes(torch_state(variables)))
    channels = network_channels(card, config)
    job["twin"] = {
        "options": network_options(config.model, len(card["labels"]), channels, card["dimensions"]),
        "weights": str(folder / "twin.pt"),
    }


def frames_of(paths: Sequence[str], job: dict[str, Any]) -> int:
    scan = read_image([Path(path) for path in paths])
    return frame_grid(scan, job["dimensions"], job["spacing"]).shape[0]


def dice(masks: Path, labels: Path, job: dict[str, Any]) -> float:
    from penn_jax.evaluate import evaluate

    merged = "foreground" in job["labels"]
    result = evaluate(masks, labels, merge_labels=merged, cases=list(job["cases"]))
    return result["mean"]["dice"]["value"]


def chosen_cases(options: argparse.Namespace) -> tuple[dict[str, list[Path]], Path]:
    """Files of the cases asked for, and the folder of their labels."""
    raw = find_cases(options.data)
    names = options.cases
    if names is None and options.part == "all":
        names = [case.name for case in raw.cases]
    elif names is None:
        split = (raw.splits or sys.exit(f"{options.data}: no split, name --cases"))[0]
        names = split.validation if options.part == "val" else split.train
    cases = {case.name: case for case in raw.cases}
    names = names[: options.limit]
    label = cases[names[0]].label
    assert label is not None  # a case of a split has one
    return {name: list(cases[name].images) for name in names}, label.parent


# ---- whole commands, and slices of one size ----------------------------------------------------


def single(run: Path, paths: list[Path], engines: Sequence[str]) -> None:
    """Time ``penn predict`` on one scan from start of the process to its end."""
    shape = "×".join(map(str, read_image(paths).array.shape[:3]))
    for engine in engines:
        with tempfile.TemporaryDirectory(prefix="predict_benchmark_") as out:
            program = [sys.executable, "-m", "penn_jax.cli", "predict", str(run), *map(str, paths)]
            program += ["--out", out, "--overwrite", "--quiet", "--engine", engine]
            seconds = []
            for _ in range(1 + SINGLE_REPEATS):
                start = time.perf_counter()
                subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
                seconds.append(time.perf_counter() - start)
        warm = seconds[1:]
        print(
            f"penn predict --engine {engine}, one scan of {shape}: "
            f"{min(warm):.2f} s at best, median {statistics.median(warm):.2f} s, "
            f"first {seconds[0]:.2f} s"
        )


@contextmanager
def smooth_volume() -> Iterator[Path]:
    """A file of slices with blobs of all sizes; noise alone would give masks of specks."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    shape = (SIDE, SIDE, SLICES)
    image = sum(ndimage.gaussian_filter(rng.normal(size=shape), (s, s, 1)) * s for s in (2, 8, 20))
    with tempfile.TemporaryDirectory(prefix="predict_benchmark_") as folder:
        path = Path(folder) / "slices_0000.nii.gz"
        grey = np.round(200 + 100 * image / np.abs(image).max()).astype(np.int16)
        write_image(path, grey, np.diag([1.0, 1.0, 4.0, 1.0]))
        yield path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, help="run of penn train")
    parser.add_argument("--data", type=Path, help="raw folder with the run's kind of scans")
    parser.add_argument("--cases", nargs="+", help="these cases only")
    parser.add_argument("--part", choices=("val", "train", "all"), default="val")
    parser.add_argument("--limit", type=int, help="at most so many cases")
    parser.add_argument("--engine", choices=("jax", "onnxruntime", "both"), default="both")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="processors to use (default: all)")
    parser.add_argument("--single", action="store_true", help="time whole commands")
    parser.add_argument("--slices", action="store_true", help="slices of 256×256, random weights")
    parser.add_argument(
        "--measure", choices=("jax", "onnxruntime", "monai"), help=argparse.SUPPRESS
    )
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        job = json.loads((options.work / "job.json").read_text())
        print(json.dumps(measure(job, options.measure, options.work / options.measure)))
        return
    if not options.slices and not (options.run and options.data):
        parser.error("give --run and --data, or --slices")
    # The measured processes inherit it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    engines = ["jax", "onnxruntime"] if options.engine == "both" else [options.engine]
    if options.slices:
        options.run = None
        with smooth_volume() as path:
            compare(make_job(options, {"slices": [path]}), [*engines, "monai"], None)
        return
    cases, labels = chosen_cases(options)
    if options.single:
        single(options.run, next(iter(cases.values())), engines)
    else:
        compare(make_job(options, cases), [*engines, "monai"], labels)


if __name__ == "__main__":
    main()
