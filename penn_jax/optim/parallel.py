"""The training step on one or many devices, by ``jit`` with shardings or by ``pmap``.

Either way the batch is split over the devices, the state is held by each, and the result is that
of one device with the whole batch, up to the order of float32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

AXIS = "batch"

_OF_CPU = {"xla_cpu_use_fusion_emitters": False}
"""XLA's older way to compile fused loops: as fast a step, and far less memory."""

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class Parallel(NamedTuple):
    """A compiled step and how its arguments come to the devices and back."""

    step: Step
    """(state, batch, progress) -> (state, metrics); the old state's memory is reused."""
    spread: Callable[[Any], Any]
    """A state as one device holds it -> as the step takes it."""
    gather: Callable[[Any], Any]
    """A state or metrics as the step returns them -> as one device of this host holds them."""
    place: Callable[[Any], Any]
    """This host's share of a batch (NumPy, leading axis samples) -> as the step takes it."""
    ahead: Callable[[Any, Any], Step]
    """(state, batch), both as the step takes them -> the step, compiled before it is called."""


def compile_step(
    build: Callable[[str | None], Step],
    kind: Literal["jit", "pmap"],
    devices: Sequence[Any] | None = None,
    parts: int = 1,
) -> Parallel:
    """Compile a step for the given devices.

    Args:
        build: makes the pure step, given the name of the ``pmap`` axis or None under ``jit``.
        kind: ``jit`` shards the batch over a mesh; ``pmap`` maps the step over its slices.
        devices: of all hosts; default all.
        parts: of a batch that the step takes one after the other, each of as many samples in a
            row of the host's share, whatever the number of hosts and devices.
    """
    devices = devices or jax.devices()
    if kind == "jit":
        return _by_jit(build(None), devices, parts)
    return _by_pmap(build(AXIS), devices, parts)


def _by_jit(step: Step, devices: Sequence[Any], parts: int) -> Parallel:
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(AXIS) if parts == 1 else PartitionSpec(None, AXIS))
    # By a jit of its own: from NumPy every host's copy is its own, which the step may overwrite.
    spread = jax.jit(lambda state: state, in_shardings=whole, out_shardings=whole)

    def place(batch: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(split, _in_parts(x, parts)), batch
        )

    compiled = jax.jit(
        step,
        in_shardings=(whole, split, whole),
        out_shardings=(whole, whole),
        donate_argnums=0,
        compiler_options=_OF_CPU if devices[0].platform == "cpu" else None,
    )
    return Parallel(
        step=compiled,
        spread=lambda state: spread(jax.tree.map(np.asarray, state)),
        gather=lambda tree: jax.tree.map(lambda x: x.addressable_data(0), tree),
        place=place,
        ahead=lambda state, batch: compiled.lower(state, batch, np.float32(0)).compile(),
    )


def _by_pmap(step: Step, devices: Sequence[Any], parts: int) -> Parallel:
    local = [device for device in devices if device.process_index == jax.process_index()]

    # By a pmap of its own: laid out otherwise, the second step would compile again.
    spread = jax.pmap(lambda _, state: state, axis_name=AXIS, in_axes=(0, None), devices=devices)

    def place(batch: Any) -> Any:
        def on_each(x: np.ndarray) -> np.ndarray:
            if parts == 1:
                return x.reshape(len(local), -1, *x.shape[1:])
            return _in_parts(x, parts).reshape(parts, len(local), -1, *x.shape[1:]).swapaxes(0, 1)

        return jax.tree.map(on_each, batch)

    compiled = jax.pmap(
        step, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0, devices=devices
    )

    def gather(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)

    def spread_over(state: Any) -> Any:
        return spread(np.arange(len(local)), state)

    def ahead(state: Any, batch: Any) -> Step:
        # By a step that changes a copy: among several processes, what pmap lowers takes other
        # arguments than pmap does.
        jax.block_until_ready(compiled(spread_over(gather(state)), batch, np.float32(0)))
        return compiled

    return Parallel(step=compiled, spread=spread_over, gather=gather, place=place, ahead=ahead)


def _in_parts(x: np.ndarray, parts: int) -> np.ndarray:
    return x if parts == 1 else x.reshape(parts, -1, *x.shape[1:])
