"""How fast a network is trained: penn_jax beside PyTorch with MONAI's pipeline.

    python benchmarks/train.py --data PREPARED [--config CONFIG] [--size 96 96] [--batch-size 64]
                               [--dtype bfloat16] [--workers 0 2] [--compile none default]

Each program trains the config's network in a process of its own, on the same device, and they take
turns; of the repeats the median counts, and ratios are told turn by turn, too. PyTorch has the same
network (``export/penn_torch.py``, in training mode, channels last, automatic mixed precision for
bfloat16), the same loss, photometric augmentation on the device, clipping, Nesterov SGD (fused) and
weight average; it is spared the centralised gradients and the check that they are finite. Of the
ways to run it that ``--compile`` names the fastest counts, on a CPU also channels first. In float32
a GPU may round products to TF32.

Step alone: one batch that stays on the device, again and again. Data included: batches as
``penn train`` streams them, and as MONAI's ``CacheDataset`` and ``DataLoader`` make them (see
``pipeline.py``), with intensities changed on the device like ours, or by MONAI's own transforms in
its workers. Of the numbers of worker processes tried the fastest counts, for each alike.

Share of peak: floating-point operations of the network's products, forward and backward, as
PyTorch counts them, against the device's peak: of the data sheet (dense) for a known GPU, or of a
large matrix product measured here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline import monai_loader
from side_by_side import Served, add_data_options, chosen_data, described

from penn_jax.config import Config
from penn_jax.data.store import Store
from penn_jax.huge_pages import start_with_huge_pages

if TYPE_CHECKING:
    import torch

PEAK_TFLOPS = {
    ("H100", "bfloat16"): 989.0,
    ("H100", "float32"): 494.0,
    ("H200", "bfloat16"): 989.0,
    ("H200", "float32"): 494.0,
}
"""Dense, of the SXM modules' data sheets; float32 as TF32."""
IN_FLIGHT = 2
"""Steps handed to the device before the oldest is waited for, as in ``penn_jax/loop.py``."""
DRAWS_OF_A_CASE = 4
"""On average, untimed, before our stream is measured."""
TRIAL_SECONDS = 2.0
"""For which each way to run PyTorch is tried."""

STEP, DATA = "step alone", "data included"
TRANSFORMS = "data included, intensities changed by MONAI"


@dataclass(frozen=True)
class Job:
    """What both programs are given."""

    config: Config
    store: str
    cases: tuple[str, ...]
    channels: int
    classes: int
    compile: tuple[str, ...]


class Speed(NamedTuple):
    patches: float
    """A second."""
    waiting: float
    """Share of the time in which the loop waited for a batch."""


Measure = Callable[[str, float, int], Speed]
"""(what is measured, seconds, worker processes) -> its speed."""


def measured(
    batches: Iterator[Any],
    step: Callable[[Any], Any],
    wait: Callable[[Any], Any],
    size: int,
    seconds: float,
    warm_up: int,
) -> Speed:
    """The speed of a training loop, once warm.

    Args:
        batches: endless.
        step: trains on one batch and gives a handle of what the device still has to do.
        wait: waits for a handle.
        size: patches of a batch.
        seconds: to measure for.
        warm_up: steps before, so that batches made ahead of time are used up.
    """
    pending: deque[Any] = deque()
    steps, waited, start = -warm_up, 0.0, time.perf_counter()
    while steps <= 0 or time.perf_counter() - start < seconds:
        if steps == 0:
            while pending:
                wait(pending.popleft())
            waited, start = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        pending.append(step(batch))
        if len(pending) > IN_FLIGHT:
            wait(pending.popleft())
        steps += 1
    while pending:
        wait(pending.popleft())
    taken = time.perf_counter() - start
    return Speed(steps * size / taken, waited / taken)


def repeated(batch: Any) -> Iterator[Any]:
    while True:
        yield batch


# ---- penn_jax ----------------------------------------------------------------------------------


def penn(job: Job) -> Measure:
    """``penn train``'s own step and stream, without its log, validation and checkpoints."""
    import jax
    import numpy as np

    from penn_jax.data.loader import BatchIterator, stream
    from penn_jax.model.network import Network, initialise
    from penn_jax.optim.parallel import compile_step
    from penn_jax.optim.sgd import build_optimiser
    from penn_jax.optim.step import build_step, create_state
    from penn_jax.train import objective_builder

    config, store, key = job.config, Store(job.store), jax.random.key(0)
    size = config.train.batch_size
    optimiser = build_optimiser(config.optim)

    build_objective = objective_builder(config, job.classes, key)
    compiled = compile_step(
        lambda axis: build_step(build_objective(axis), optimiser, config.optim.average, axis),
        config.train.parallel,
    )
    variables = initialise(Network(config.model, job.classes), key, job.channels, 2)
    state = jax.jit(lambda v: create_state(v["params"], v.get("batch_stats", {}), optimiser))(
        variables
    )
    state = compiled.spread(state)
    streams: dict[int, BatchIterator] = {}

    def started(workers: int) -> Iterator[Any]:
        if workers not in streams:
            batches = stream(store, job.cases, config.patches, size, seed=0, workers=workers)
            # MONAI's cases are in memory from the start, ours once they were drawn.
            for _ in range(DRAWS_OF_A_CASE * len(job.cases) * max(1, workers) // size):
                next(batches)
            streams[workers] = batches
        while True:
            yield next(streams[workers])

    def step(placed: Any) -> Any:
        nonlocal state
        state, metrics = compiled.step(state, placed, np.float32(0.5))
        return metrics

    def step_on(batch: Any) -> Any:
        return step(compiled.place({k: x for k, x in batch.items() if k != "place"}))

    on_device = compiled.place({k: x for k, x in next(started(0)).items() if k != "place"})
    jax.block_until_ready(step(on_device))

    def measure(what: str, seconds: float, workers: int) -> Speed:
        alone = what == STEP
        batches, run = (repeated(on_device), step) if alone else (started(workers), step_on)
        warm_up = warm_up_steps(what, workers)
        return measured(batches, run, jax.block_until_ready, size, seconds, warm_up)

    return measure


def warm_up_steps(what: str, workers: int) -> int:
    """More than the batches that either pipeline has ready."""
    return 3 if what == STEP else 8 + 4 * workers


# ---- PyTorch and MONAI -------------------------------------------------------------------------


def theirs(job: Job) -> Measure:
    """The training loop that users of PyTorch and MONAI write."""
    import torch

    config, store = job.config, Store(job.store)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    size, shape = config.train.batch_size, config.patches.size
    image = torch.randn(size, job.channels, *shape, device=device)
    label = torch.randint(job.classes, (size, *shape), device=device, dtype=torch.uint8)
    train, layout, name = fastest(job, device, image, label)
    image = image.contiguous(memory_format=layout)
    print(f"PyTorch runs {name}", flush=True)
    loaders: dict[tuple[str, int], Iterator[Any]] = {}

    def started(what: str, workers: int) -> Iterator[Any]:
        if (what, workers) not in loaders:
            loaders[what, workers] = iter(
                monai_loader(
                    store,
                    job.cases,
                    config.patches,
                    size,
                    workers,
                    config.photometry if what == TRANSFORMS else None,
                    pinned=device.type == "cuda",
                )
            )
        return loaders[what, workers]

    def measure(what: str, seconds: float, workers: int) -> Speed:
        def step(batch: Any) -> Any:
            if what == STEP:
                return finished(train(image, label, True))
            there = batch["image"].to(device, non_blocking=True, memory_format=layout)
            labels = batch["label"][:, 0].to(device, non_blocking=True)
            return finished(train(there, labels, what == DATA))

        batches = repeated(None) if what == STEP else started(what, workers)
        return measured(batches, step, waited_for, size, seconds, warm_up_steps(what, workers))

    return measure


def twin(job: Job) -> torch.nn.Module:
    """The network in PyTorch, with random weights."""
    from penn_jax.export.penn_torch import Network
    from penn_jax.export.weights import network_options

    return Network(**network_options(job.config.model, job.classes, job.channels, 2))


def finished(loss: torch.Tensor) -> Any:
    """A handle of all that is under way on the loss's device."""
    import torch

    if loss.device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def waited_for(event: Any) -> None:
    if event is not None:
        event.synchronize()


def fastest(
    job: Job, device: torch.device, image: torch.Tensor, label: torch.Tensor
) -> tuple[Callable[..., torch.Tensor], torch.memory_format, str]:
    """Try the ways to run PyTorch's step: the fastest, its layout and its name."""
    import torch
    from torch_step import training_step

    layouts = {"channels last": torch.channels_last}
    if device.type == "cpu":
        layouts["channels first"] = torch.contiguous_format
    best, result = 0.0, None
    for mode in job.compile:
        found: dict[str, float] = {}
        for name, layout in layouts.items():
            train = training_step(twin(job).to(device), job.config, layout, mode)
            there = image.contiguous(memory_format=layout)
            try:
                speed = measured(
                    repeated(None),
                    lambda _, train=train, there=there: finished(train(there, label, True)),
                    waited_for,
                    len(image),
                    TRIAL_SECONDS,
                    warm_up=3,
                )
            except Exception as error:  # no C compiler, no Triton, …: many kinds
                reason = str(error).strip().partition("\n")[0]
                print(f"PyTorch, {mode}, {name}: {type(error).__name__}: {reason}", flush=True)
                continue
            found[name] = speed.patches
            print(f"PyTorch, {mode}, {name}: {speed.patches:,.1f} patches/s", flush=True)
            if speed.patches > best:
                best, result = speed.patches, (train, layout, f"{mode}, {name}")
        if found:  # compiling takes long: once the layout is known, only that
            chosen = max(found, key=lambda name: found[name])
            layouts = {chosen: layouts[chosen]}
    if result is None:
        raise RuntimeError("no way to run PyTorch's step works")
    return result


# ---- what the figures are held against ---------------------------------------------------------


class Ceiling(NamedTuple):
    """Of the device, and what the network asks of it."""

    device: str
    flops: float
    """Of the network's products for one patch, forward and backward."""
    peak: float
    """Floating-point operations a second."""


def ceiling(job: Job) -> Callable[[], Ceiling]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def find() -> Ceiling:
        config = job.config
        network = twin(job).train()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(2, job.channels, *config.patches.size)).sum().backward()
        precision = config.model.precision
        cuda = torch.cuda.is_available()
        name = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads"
        known = [
            tera * 1e12
            for (part, dtype), tera in PEAK_TFLOPS.items()
            if part in name and dtype == precision
        ]
        peak = known[0] if known else product_speed("cuda" if cuda else "cpu", precision)
        return Ceiling(name, counter.get_total_flops() / 2, peak)

    return find


def product_speed(device: str, precision: str) -> float:
    """Floating-point operations a second of a large matrix product, the best of a few."""
    import torch

    side = 8192 if device == "cuda" else 2048
    matrix = torch.randn(side, side, device=device, dtype=getattr(torch, precision))
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # which waits for it
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


# ---- side by side ------------------------------------------------------------------------------


PROGRAMS = {"penn_jax": penn, "PyTorch": theirs}
WITH = {"penn_jax": "penn_jax", "PyTorch": "PyTorch with MONAI"}
"""What each program is called where its data are included."""
ROWS = (
    ("penn_jax", STEP),
    ("PyTorch", STEP),
    ("penn_jax", DATA),
    ("PyTorch", DATA),
    ("PyTorch", TRANSFORMS),
)


Found = dict[tuple[str, str, int], list[Speed]]
"""The speeds of a program, at something that is measured, with a number of worker processes."""


def compare(
    programs: dict[str, Measure], rows: Sequence[tuple[str, str]], options: argparse.Namespace
) -> Found:
    """Let the programs take turns.

    Where several numbers of workers are given, the first turn tries all, the others the best.
    """
    found: Found = {}
    for turn in range(options.repeats):
        for program, what in rows:
            numbers = options.workers if what != STEP else [0]
            if turn:
                tried = [n for n in numbers if (program, what, n) in found]
                numbers = sorted(tried, key=lambda n: found[program, what, n][0].patches)[-1:]
            for workers in numbers:
                try:
                    speed = programs[program](what, options.seconds, workers)
                except RuntimeError as error:
                    print(f"{program}, {what}, {workers} workers: {error}", flush=True)
                else:
                    found.setdefault((program, what, workers), []).append(speed)
    return found


def table(found: Found, limit: Ceiling) -> Iterator[str]:
    """Lines of Markdown: a row for each program and what was measured, then the ratios."""
    yield "| program | measured | workers | patches/s | all repeats | of peak | waiting for data |"
    yield "|---|---|---:|---:|---|---:|---:|"
    best: dict[tuple[str, str], list[Speed]] = {}
    """Of each row the repeats with the fastest number of workers."""
    for program, what in dict.fromkeys((program, what) for program, what, _ in found):
        of_row = {n: speeds for (p, w, n), speeds in found.items() if (p, w) == (program, what)}
        workers = max(of_row, key=lambda n: (len(of_row[n]), _rate(of_row[n])))
        speeds = best[program, what] = of_row[workers]
        waiting = statistics.median(speed.waiting for speed in speeds)
        columns = [
            program if what == STEP else WITH[program],
            what,
            "–" if what == STEP else str(workers),
            f"{_rate(speeds):,.1f}",
            ", ".join(f"{speed.patches:,.1f}" for speed in speeds),
            f"{_rate(speeds) * limit.flops / limit.peak:.1%}",
            "–" if what == STEP else f"{waiting:.1%}",
        ]
        yield f"| {' | '.join(columns)} |"
    for (program, what), speeds in best.items():
        ours = best.get(("penn_jax", DATA if what == TRANSFORMS else what))
        if program != "penn_jax" and ours:
            # A shared machine's speed drifts: within a turn both had about the same.
            turns = [a.patches / b.patches for a, b in zip(ours, speeds, strict=False)]
            yield (
                f"penn_jax / {program if what == STEP else WITH[program]}, {what}: "
                f"{_rate(ours) / _rate(speeds):.2f}; of each turn {min(turns):.2f} to "
                f"{max(turns):.2f}, median {statistics.median(turns):.2f}"
            )


def _rate(speeds: Sequence[Speed]) -> float:
    return statistics.median(speed.patches for speed in speeds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_data_options(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--compile",
        nargs="+",
        default=["none", "default"],
        choices=("none", "default", "reduce-overhead", "max-autotune-no-cudagraphs"),
        help="ways to run PyTorch's step, of which the fastest counts",
    )
    parser.add_argument("--peak-tflops", type=float, help="of the device, where it is not known")
    options = parser.parse_args(arguments)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room too
    with ExitStack() as stack:
        config, store, cases = chosen_data(options, stack)
        if config.model.deep_supervision:
            parser.error(f"{options.config}: deep supervision is not compared")
        config = replace(config, model=replace(config.model, precision=options.dtype))
        job = Job(
            config,
            str(store.path),
            tuple(cases),
            len(store.manifest["channels"]) * (2 * config.patches.neighbours + 1),
            len(store.manifest["labels"]),
            tuple(options.compile),
        )

        def served(build: Callable[..., Any]) -> Served:
            program = Served(build, job)
            stack.callback(program.close)
            return program

        counter = served(ceiling)
        if wrong := counter.failure():
            raise SystemExit(wrong)
        limit = counter()
        counter.close()
        if options.peak_tflops:
            limit = limit._replace(peak=1e12 * options.peak_tflops)
        programs: dict[str, Measure] = {}
        for name, build in PROGRAMS.items():  # one after the other: PyTorch's is choosing
            program = served(build)
            if wrong := program.failure():
                print(f"{name} is left out: {wrong}", flush=True)
            else:
                programs[name] = program
        rows = [row for row in ROWS if row[0] in programs]
        if find_spec("monai") is None:
            print("MONAI is left out: it is not installed", flush=True)
            rows = [row for row in rows if row[0] == "penn_jax" or row[1] == STEP]
        found = compare(programs, rows, options)
    print(
        f"{described(config, cases)}, {options.dtype}; {limit.device}, "
        f"{limit.flops / 1e9:.2f} GFLOP a patch, peak {limit.peak / 1e12:.2f} TFLOP/s"
    )
    print("\n".join(table(found, limit)))


if __name__ == "__main__":
    start_with_huge_pages()  # for both programs, as penn train does
    main()
