"""How fast the network predicts on an accelerator, beside the same weights in PyTorch.

    python benchmarks/accelerator.py [--side 512] [--batches 16 64] [--seconds 3]

One process, the same random weights and slices in both. The network is that of the default config
with two classes: batch normalisation folded in penn_jax, as ``penn predict`` evaluates it; in
PyTorch left to ``torch.compile``, channels last, inference mode, and automatic
mixed precision where bfloat16 is asked for. In float32 both may round products to TF32.

Throughput: slices in the device's memory to labels in the device's memory, batch after batch.
Latency: one slice on the host to its labels on the host, the median. Labels are compared with those
of PyTorch in float32 without TF32.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room too

import jax
import jax.numpy as jnp
import numpy as np
import torch

from penn_jax.config import ModelConfig
from penn_jax.export.torch import to_torch
from penn_jax.model.fold import fold
from penn_jax.model.network import Network, initialise

CLASSES, LATENCIES = 2, 200
PRECISIONS = ("float32", "bfloat16")

ToLabels = Callable[[Any], Any]
"""From slices on the device to labels on the device."""


def ours(variables: Any, model: ModelConfig) -> ToLabels:
    folded, config = fold(variables, model)
    network, on_device = Network(config, CLASSES), jax.device_put(folded)

    @jax.jit
    def labels(variables: Any, x: jax.Array) -> jax.Array:
        return jnp.argmax(network.apply(variables, x)[0], axis=-1).astype(jnp.uint8)

    return lambda x: labels(on_device, x)


def theirs(twin: torch.nn.Module, precision: str, compiled: bool = True) -> ToLabels:
    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
            return twin(x).argmax(dim=1).to(torch.uint8)

    run = torch.compile(forward) if compiled else forward

    def labels(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return run(x)

    return labels


def throughput(labels: ToLabels, x: Any, wait: Callable[[Any], Any], seconds: float) -> float:
    """Slices a second, once warm."""
    for _ in range(3):
        wait(labels(x))
    batches, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        # A few in flight, so that the device never waits for the host.
        found = [labels(x) for _ in range(8)]
        wait(found[-1])
        batches += len(found)
    return batches * len(x) / taken


def latency(once: Callable[[], Any]) -> float:
    """Median seconds."""
    for _ in range(5):
        once()
    taken = []
    for _ in range(LATENCIES):
        start = time.perf_counter()
        once()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    if jax.default_backend() != "gpu" or not torch.cuda.is_available():
        parser.error("no GPU that both jax and PyTorch see")

    model = ModelConfig()
    variables = jax.device_get(initialise(Network(model, CLASSES), jax.random.key(0), 1, 2))
    rows = max(options.batches)
    slices = np.random.default_rng(0).normal(size=(rows, options.side, options.side, 1))
    slices = slices.astype(np.float32)
    few, one = slices[: min(options.batches)], slices[:1]
    twin = to_torch(variables, model, CLASSES, 1, 2).cuda().to(memory_format=torch.channels_last)

    def to_device(part: np.ndarray) -> torch.Tensor:
        there = torch.from_numpy(np.ascontiguousarray(np.moveaxis(part, -1, 1))).cuda()
        return there.contiguous(memory_format=torch.channels_last)

    torch.backends.cudnn.allow_tf32 = False
    exact = theirs(twin, "float32", compiled=False)(to_device(few)).cpu().numpy()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True

    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, torch {torch.__version__}, "
          f"slices of {options.side}×{options.side}")  # fmt: skip
    print("| precision | program | " + " | ".join(f"slices/s, {n} at once" for n in options.batches)
          + " | ms, one slice | labels that differ |")  # fmt: skip
    print("|---|---|" + "---:|" * (len(options.batches) + 2))
    for precision in PRECISIONS:
        made = ours(variables, replace(model, precision=precision))
        other = theirs(twin, precision)
        found = {
            "penn_jax": (
                [
                    throughput(
                        made, jnp.asarray(slices[:n]), jax.block_until_ready, options.seconds
                    )
                    for n in options.batches
                ],
                latency(lambda made=made: np.asarray(made(one))),
                np.asarray(made(jnp.asarray(few))),
            ),
            "PyTorch": (
                [
                    throughput(
                        other,
                        to_device(slices[:n]),
                        lambda _: torch.cuda.synchronize(),
                        options.seconds,
                    )
                    for n in options.batches
                ],
                latency(lambda other=other: other(to_device(one)).cpu().numpy()),
                other(to_device(few)).cpu().numpy(),
            ),
        }
        for program, (rates, seconds, labels) in found.items():
            print(
                f"| {precision} | {program} | "
                + " | ".join(f"{rate:,.0f}" for rate in rates)
                + f" | {1e3 * seconds:.2f} | {np.mean(labels != exact):.2e} |",
                flush=True,
            )
        ratios = [
            a / b for a, b in zip(*(found[p][0] for p in ("penn_jax", "PyTorch")), strict=True)
        ]
        print(f"| {precision} | penn_jax / PyTorch | " + " | ".join(f"{r:.2f}" for r in ratios)
              + f" | {found['penn_jax'][1] / found['PyTorch'][1]:.2f} | |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
