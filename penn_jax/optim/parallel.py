"""The training step on one or many devices, by ``jit`` with shardings or by ``pmap``.

Either way the batch is split over the devices, the state is held by each, and the result is that
of one device with the whole batch, up to the order of float32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

AXIS = "batch"

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class Parallel(NamedTuple):
    """A compiled step and how its arguments come to the devices and back."""

    step: Step
    """(state, batch, progress) -> (state, metrics); the old state's memory is reused."""
    spread: Callable[[Any], Any]
    """A state as one device holds it -> as the step takes it."""
    gather: Callable[[Any], Any]
    """A state or metrics as the step returns them -> as one device holds them."""
    place: Callable[[Any], Any]
    """This host's share of a batch (NumPy, leading axis samples) -> as the step takes it."""


def compile_step(
    build: Callable[[str | None], Step],
    kind: Literal["jit", "pmap"],
    devices: Sequence[Any] | None = None,
) -> Parallel:
    """Compile a step for the given devices.

    Args:
        build: makes the pure step, given the name of the ``pmap`` axis or None under ``jit``.
        kind: ``jit`` shards the batch over a mesh; ``pmap`` maps the step over its slices.
        devices: default all.
    """
    devices = devices or jax.devices()
    return _by_jit(build(None), devices) if kind == "jit" else _by_pmap(build(AXIS), devices)


def _by_jit(step: Step, devices: Sequence[Any]) -> Parallel:
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(AXIS))

    def place(batch: Any) -> Any:
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), batch)

    return Parallel(
        step=jax.jit(
            step,
            in_shardings=(whole, split, whole),
            out_shardings=(whole, whole),
            donate_argnums=0,
        ),
        # A copy: the step may overwrite its argument, the caller's arrays stay his.
        spread=lambda state: jax.device_put(jax.tree.map(jnp.copy, state), whole),
        gather=lambda tree: tree,
        place=place,
    )


def _by_pmap(step: Step, devices: Sequence[Any]) -> Parallel:
    local = [device for device in devices if device.process_index == jax.process_index()]

    # By a pmap of its own: laid out otherwise, the second step would compile again.
    spread = jax.pmap(lambda _, state: state, axis_name=AXIS, in_axes=(0, None), devices=devices)

    def place(batch: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(len(local), -1, *x.shape[1:]), batch)

    return Parallel(
        step=jax.pmap(
            step, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0, devices=devices
        ),
        spread=lambda state: spread(np.arange(len(local)), state),
        gather=lambda tree: jax.tree.map(lambda x: x[0], tree),
        place=place,
    )
