"""``penn rehearse``: the real training step, compiled for devices that need not be there."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from penn_jax.config import Config, to_json
from penn_jax.data.store import Store
from penn_jax.progress import say
from penn_jax.roofline import (
    CHIPS,
    HOP_SECONDS,
    Chip,
    Collective,
    collective_seconds,
    weak_scaling,
)
from penn_jax.task import check_config
from penn_jax.types import InputError

_MOST_CPU_DEVICES = 512


class Topology(NamedTuple):
    """Devices to compile for."""

    name: str
    grid: tuple[int, ...]
    """Devices along each axis."""
    chip: Chip | None
    """None for a CPU, of which no peaks are known."""
    memory: int
    """Bytes of a device."""


def rehearse(
    config: Config,
    topology: str,
    data: Path | None = None,
    channels: int = 1,
    classes: int = 2,
    patches: int | None = None,
    search: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Compile the training step for a topology, from shapes alone, and tell what it would take.

    Args:
        config: of the run.
        topology: such as ``v5e:4x4``, by libtpu, or ``cpu:8``.
        data: prepared store that says channels and classes in place of the next two.
        channels: of a scan.
        classes: of the labels, background included.
        patches: of a device and step, all parts of ``train.accumulate`` together; by default the
            config's whole batch, so that the global batch grows with the devices.
        search: look for the largest batch a device that fits, by further compilations.
        progress: tell each compilation.

    Returns:
        Plain JSON types: ``flops``, ``bytes`` and ``memory`` of one device and step,
        ``collectives``, ``seconds`` (None for a CPU), ``largest`` batch, ``weak_scaling`` and the
        ``assumptions`` under which all this holds. Where the compiler refuses even the first batch,
        ``refusal`` says why, and ``largest`` what would do.

    Raises:
        InputError: the topology is not known, its compiler is missing, or config and data do not
            belong together.
    """
    there = parse_topology(topology)
    if data is not None:
        channels, classes = _shape_of(Store(data), config)
    _check(config, channels, classes, patches)
    patches = patches or config.train.batch_size
    channels *= 2 * config.patches.neighbours + 1
    request = {
        "config": to_json(config),
        "topology": topology,
        "channels": channels,
        "classes": classes,
        "patches": patches,
        "capacity": there.memory if search else 0,
    }
    answer = _answer(request, there, progress)
    devices = math.prod(there.grid)
    return {
        "config": config.name,
        "topology": topology,
        "batch": patches * devices,
        "patches": patches,
        "accumulate": config.train.accumulate,
        "patch": [*config.patches.size, channels],
        "classes": classes,
        "capacity": there.memory,
        **answer,
        **_on_paper(answer, there),
        "assumptions": assumptions(there.chip, config.train.accumulate),
    }


def parse_topology(text: str) -> Topology:
    """``v5e:4x4``, ``v5p:2x2x4`` or ``cpu:8``.

    Raises:
        InputError: it is none of these, or libtpu, which compiles for TPUs, is not installed.
    """
    expected = f"{', '.join(CHIPS)} and the chips along each axis (v5e:4x4, v5p:2x2x4), or cpu:8"
    match = re.fullmatch(r"(\w+):([1-9]\d{0,3}(?:x[1-9]\d{0,3})*)", text, re.ASCII)
    name, grid = ("", ()) if match is None else (match[1], (*map(int, match[2].split("x")),))
    if name == "cpu" and len(grid) == 1 and grid[0] <= _MOST_CPU_DEVICES:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Topology(text, grid, None, memory // grid[0])
    chip = CHIPS.get(name)
    if chip is None or len(grid) != chip.axes:
        raise InputError("--topology", f"{text!r} is not known", expected, "name one")
    if math.prod(grid) > chip.most:
        raise InputError(
            "--topology", f"{text} is too large", f"up to {chip.most} chips", "lower it"
        )
    if not importlib.util.find_spec("libtpu") and "TPU_LIBRARY_PATH" not in os.environ:
        raise InputError(
            "--topology",
            f"{text} needs the compiler for TPUs",
            "libtpu, 0.2 GB from PyPI",
            "pip install 'penn-jax[tpu]'",
        )
    return Topology(text, grid, chip, chip.memory)


def _shape_of(store: Store, config: Config) -> tuple[int, int]:
    """Channels of a scan and classes of its labels."""
    manifest = store.manifest
    if len(config.patches.size) != manifest["dimensions"]:
        raise InputError(
            "--patches.size",
            f"{len(config.patches.size)} axes",
            f"{manifest['dimensions']}, as the store {store.path} has",
            "give one size an axis",
        )
    return len(manifest["channels"]), len(manifest["labels"])


def _check(config: Config, channels: int, classes: int, patches: int | None) -> None:
    check_config(config)
    for option, value, least in (
        ("--channels", channels, 1),
        ("--classes", classes, 2),
        ("--patches-per-device", 1 if patches is None else patches, 1),
    ):
        if value < least:
            raise InputError(option, f"{value}", f"at least {least}", "raise it")
    parts, of_a_device = config.train.accumulate, patches or config.train.batch_size
    if of_a_device % parts:
        raise InputError(
            "--patches-per-device",
            f"{of_a_device}",
            f"a multiple of the {parts} parts of --train.accumulate",
            "change it",
        )
    if config.train.parallel != "jit":
        raise InputError(
            "--train.parallel",
            config.train.parallel,
            "jit: pmap compiles for devices that are there alone",
            "add --train.parallel jit",
        )


def _answer(request: Mapping[str, Any], there: Topology, progress: bool) -> dict[str, Any]:
    """Have the step compiled in a process of its own, which sees no device but the CPU."""
    flags = f"--xla_force_host_platform_device_count={there.grid[0] if there.chip is None else 1}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",  # or libtpu asks a cloud's server, which is not there
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # none of them touches a chip
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
    }
    command = [sys.executable, "-m", "penn_jax.compilation", json.dumps(request)]
    found, answer = False, None
    with (
        tempfile.TemporaryFile("w+", errors="replace") as noise,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=noise, text=True, env=environment
        ) as child,
    ):
        try:
            for line in child.stdout or ():
                said = json.loads(line)
                found = True
                if "answer" in said:
                    answer = said["answer"]
                elif "patches" in said:
                    say(_compilation(said), progress)
            child.wait()
        except BaseException:
            child.kill()
            raise
        noise.seek(0)
        last = " ".join(noise.read().strip().splitlines()[-1:])
    if answer is None and not found:
        raise InputError(
            "--topology", f"{there.name}: {last}", "a slice that exists", "see docs/rehearsal.md"
        )
    if answer is None:
        raise RuntimeError(f"the compilation for {there.name} ended early: {last}")
    return answer


def _compilation(said: Mapping[str, Any]) -> str:
    size = said["memory"]
    end = "and refused: it does not fit" if size is None else f"{size / 2**30:.2f} GiB"
    return f"{said['patches']} patches a device: compiled in {said['seconds']:.0f} s, {end}"


def _on_paper(answer: Mapping[str, Any], there: Topology) -> dict[str, Any]:
    chip = there.chip
    if chip is None or "flops" not in answer:
        return {"seconds": None, "weak_scaling": None}
    found = [Collective(**each) for each in answer["collectives"]]
    seconds = {
        "operations": answer["flops"] / chip.flops,
        "memory": answer["bytes"] / chip.bandwidth,
        "compiler": (answer["cycles"] or 0) / chip.clock,
        "collectives": collective_seconds(found, chip, there.grid),
    }
    roofline = max(seconds["operations"], seconds["memory"])
    return {
        "seconds": {**seconds, "step": roofline + seconds["collectives"]},
        "weak_scaling": {
            "roofline": weak_scaling(roofline, found, chip),
            "compiler": weak_scaling(max(roofline, seconds["compiler"]), found, chip),
        },
    }


def assumptions(chip: Chip | None, parts: int = 1) -> list[str]:
    """Under which the figures hold, of a batch that passes in so many parts."""
    general = [
        "nothing has run: operations, bytes and memory are the compiler's own count",
        "the next batches, on their way while a step computes, are not part of the memory",
    ]
    if parts > 1:
        general.append(
            f"{parts} parts of a batch: what the loops over them hold counts {parts} times, the "
            "update of the weights once, as it is compiled alone"
        )
    if chip is None:
        return [*general, "no time is told, since no peaks of a CPU are known"]
    return [
        *general,
        f"operations at the bfloat16 peak of {chip.flops / 1e12:.0f} TFLOP/s: a TPU rounds the "
        "inputs of float32 convolutions to bfloat16 unless told otherwise, and no unit ever idles",
        f"memory at its full {chip.bandwidth / 1e9:.0f} GB/s while the units compute; the bytes "
        "are those of every operation, also what the compiler keeps on the chip",
        f"the compiler's time is its own estimate of the cycles of each operation, one after the "
        f"other at {chip.clock / 1e9:.2f} GHz, collectives left out",
        f"collectives one after the other and after all computing, by rings along the axes of the "
        f"grid, {chip.link / 1e9:.0f} GB/s a link and way, {HOP_SECONDS * 1e6:.0f} µs a hop",
        "the loader keeps up; reading, validation and checkpoints take no time",
        "weak scaling: a device keeps its batch, the grid is as cubic as it can be",
    ]
