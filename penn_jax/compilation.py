"""Compiles the training step for devices that need not be there, and reads what the compiler knows.

``python -m penn_jax.compilation`` is the process in which ``penn_jax.rehearse`` does this: which
devices jax sees is settled when it starts, and a compiler that aborts takes its process with it.
Its argument is a request; lines of JSON come out: the devices, each compilation, the answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from penn_jax.config import Config, from_json
from penn_jax.model.network import Network, initialise
from penn_jax.optim.parallel import compile_step
from penn_jax.optim.sgd import build_optimiser
from penn_jax.optim.step import Objective, build_step, create_state
from penn_jax.program import collectives, cycles, loops
from penn_jax.train import objective_builder

_MOST_COMPILATIONS = 12
_NOTCH = 16
"""The largest batch is searched for to a sixteenth of itself."""


class Largest(NamedTuple):
    """Patches a device, as the search for the most of them ended."""

    fits: int
    """0 where not even one fits."""
    refused: int | None
    """The fewest that were found not to fit; None where the search was ended before."""
    recomputed: bool
    """The search was ended because so many took less memory than fewer."""
    compilations: int


def topology_devices(topology: str) -> Sequence[Any]:
    """The devices of ``v5e:4x4`` and the like by libtpu; those of jax for ``cpu:8``."""
    name, _, sides = topology.partition(":")
    if name == "cpu":
        return jax.devices("cpu")
    from jax.experimental import topologies

    first, second = (min(int(side), 2) for side in sides.split("x")[:2])
    return topologies.get_topology_desc(
        topology,
        "tpu",
        chips_per_host_bounds=(first, second, 1),
        # The two cores of a v4 are one device; later chips are of themselves.
        **({"chip_config_name": "megacore"} if name == "v4" else {}),
    ).devices


def lowered_step(
    config: Config, channels: int, classes: int, batch: int, devices: Sequence[Any]
) -> jax.stages.Lowered:
    """The step of ``penn train``, traced from shapes alone; ``compile()`` is what takes long.

    Args:
        config: of the run.
        channels: of a patch.
        classes: of the labels, background included.
        batch: global, a multiple of the devices times the parts of ``train.accumulate``.
        devices: to compile for.
    """
    build = objective_builder(config, classes, jax.random.key(config.train.seed))
    return _lowered(config, build, channels, classes, batch, devices, config.train.accumulate)


def lowered_update(
    config: Config, channels: int, classes: int, devices: Sequence[Any]
) -> jax.stages.Lowered:
    """The same step with weights for a gradient: what it does once, in however many parts."""

    def half_a_square(params: Any, batch_stats: Any, batch: Any, reduce: Any) -> Any:
        return 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), (batch_stats, {})

    return _lowered(config, lambda axis: half_a_square, channels, classes, len(devices), devices, 1)


def _lowered(
    config: Config,
    build: Callable[[str | None], Objective],
    channels: int,
    classes: int,
    batch: int,
    devices: Sequence[Any],
    parts: int,
) -> jax.stages.Lowered:
    optimiser = build_optimiser(config.optim)
    step = compile_step(
        lambda axis: build_step(build(axis), optimiser, config.optim.average, axis, parts),
        "jit",
        devices,
        parts,
    ).step

    def begin() -> Any:
        network, dimensions = Network(config.model, classes), len(config.patches.size)
        variables = initialise(network, jax.random.key(0), channels, dimensions)
        return create_state(variables["params"], variables.get("batch_stats", {}), optimiser)

    samples = (batch,) if parts == 1 else (parts, batch // parts)
    shape = (*samples, *config.patches.size)
    patches = {
        "image": jax.ShapeDtypeStruct((*shape, channels), np.float32),
        "label": jax.ShapeDtypeStruct(shape, np.uint8),
        "index": jax.ShapeDtypeStruct(samples, jax.dtypes.canonicalize_dtype(np.int64)),
    }
    progress = jax.ShapeDtypeStruct((), np.float32)
    return step.lower(jax.eval_shape(begin), patches, progress)


def cost(compiled: jax.stages.Compiled) -> dict[str, float]:
    """``flops`` and ``bytes`` of one device and step, as the compiler counts them: loops once."""
    counted = compiled.cost_analysis() or {}
    return {"flops": counted["flops"], "bytes": counted["bytes accessed"]}


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of one device, as the compiler laid them out; ``total`` is what is held at once."""
    found: Any = compiled.memory_analysis()
    parts = {
        "arguments": found.argument_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "output": found.output_size_in_bytes,
        "reused": found.alias_size_in_bytes,
        "program": found.generated_code_size_in_bytes,
    }
    return {**parts, "total": sum(parts.values()) - 2 * parts["reused"]}


def repeated(
    once: Mapping[str, float], outside: Mapping[str, float], runs: int
) -> dict[str, float]:
    """The cost of a program whose loops run so often, from that with each loop counted once.

    Args:
        once: of the program, by ``cost``.
        outside: of what is not in its loops.
        runs: of each loop.
    """
    return {name: value + (runs - 1) * (value - outside[name]) for name, value in once.items()}


def largest_batch(needed: Callable[[int], int | None], capacity: int, start: int) -> Largest:
    """The most patches a device can take, by compiling for a few numbers of them.

    Memory is a fixed part and one that grows with the batch. So the second batch, as many times
    the first as its memory fits, leaves room; the line through both tells the third; after that
    the bracket between what fits and what does not is narrowed. A compiler that is short of memory
    recomputes feature maps in place of keeping them: where more patches take less memory the search
    ends, as still more would gain nothing but operations.

    Args:
        needed: bytes for so many patches; None where the compiler refuses them.
        capacity: bytes of the device.
        start: patches to begin with.
    """
    sizes: dict[int, int] = {}
    refused: int | None = None
    batch = start
    for compilations in range(1, _MOST_COMPILATIONS + 1):
        size, fewer = needed(batch), max(sizes, default=0)
        if size is None or size > capacity:
            refused = batch
        else:
            sizes[batch] = size
        fits = max(sizes, default=0)
        recomputed = fits > fewer > 0 and sizes[fits] <= sizes[fewer]
        narrow = refused is not None and refused - fits <= max(1, fits // _NOTCH)
        if recomputed or narrow:
            return Largest(fits, refused, recomputed, compilations)
        batch = _next_batch(sizes, refused, capacity)
    return Largest(max(sizes, default=0), refused, False, _MOST_COMPILATIONS)


def _next_batch(sizes: Mapping[int, int], refused: int | None, capacity: int) -> int:
    fits = max(sizes, default=0)
    notch = max(1, fits // _NOTCH)
    if len(sizes) < 2 and refused is not None:
        return (fits + refused) // 2
    if len(sizes) < 2:
        return max(fits * capacity // sizes[fits], fits + notch)
    (few, less), (many, more) = sorted(sizes.items())[-2:]
    # Near the end the compiler recomputes feature maps to save memory, and the line lies flat.
    slope = max((more - less) / (many - few), more / many / 2)
    guess = many + int((capacity - more) / slope)
    if refused is None:
        return max(guess, fits + notch)
    # Refused although the line says that it fits: the end is near, the compiler keeps some room.
    return (fits + 3 * refused) // 4 if guess >= refused else max(guess, fits + notch)


def rehearsed(request: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> Any:
    """What a request of ``penn_jax.rehearse`` asks for, as plain JSON types."""
    config = from_json(Config, request["config"])
    devices = topology_devices(request["topology"])
    tell({"devices": len(devices)})
    shape, parts = (request["channels"], request["classes"]), config.train.accumulate
    refusal = ""

    def compile_for(patches: int) -> jax.stages.Compiled | None:
        nonlocal refusal
        begun, compiled = time.perf_counter(), None
        try:
            compiled = lowered_step(config, *shape, patches * len(devices), devices).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refusal = " ".join(str(error).split())
        seconds = time.perf_counter() - begun
        size = None if compiled is None else memory(compiled)["total"]
        tell({"patches": patches, "seconds": seconds, "memory": size})
        return compiled

    first = request["patches"]
    compiled = compile_for(first)
    answer: dict[str, Any] = {
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "versions": {name: _version(name) for name in ("jax", "jaxlib", "libtpu")},
        "refusal": refusal,
    }
    if compiled is not None:
        program, counted = compiled.as_text() or "", cost(compiled)
        if parts > 1 and parts in loops(program):
            outside = cost(lowered_update(config, *shape, devices).compile())
            counted = repeated(counted, outside, parts)
        answer |= {
            **counted,
            "cycles": cycles(program),
            "memory": memory(compiled),
            "collectives": [each._asdict() for each in collectives(program, len(devices))],
        }

    def needed(of_a_part: int) -> int | None:
        patches = of_a_part * parts
        found = compiled if patches == first else compile_for(patches)
        return memory(found)["total"] if found is not None else None

    answer["largest"] = None
    if capacity := request["capacity"]:
        found = largest_batch(needed, capacity, first // parts)
        refused = found.refused and found.refused * parts
        answer["largest"] = found._replace(fits=found.fits * parts, refused=refused)._asdict()
    return answer


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Answer one request."""

    def tell(line: Mapping[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    tell({"answer": rehearsed(json.loads(sys.argv[1]), tell)})


if __name__ == "__main__":
    main()
