"""Patches cut on the devices: the host draws, the frames lie in the devices' memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from penn_jax.config import PatchConfig
from penn_jax.data.resident import resident_frames
from penn_jax.data.store import Store
from penn_jax.model.cut import DeviceFrames, cut
from penn_jax.optim.parallel import Parallel


def device_cutter(
    store: Store,
    cases: Sequence[str],
    config: PatchConfig,
    compiled: Parallel,
    kind: Literal["jit", "pmap"],
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """From a placed batch of draws (``stream(…, cut=False)``) to the batch that a step takes.

    Every device holds all frames of the cases: ``4 · channels + 1`` bytes a voxel.

    Args:
        store: prepared cases.
        cases: those that are drawn from, in the order in which the loader numbers them.
        config: size and neighbours of the patches.
        compiled: the step, whose devices they are.
        kind: how it is compiled.
    """
    arrays = {name: jnp.asarray(x) for name, x in resident_frames(store, cases).items()}
    frames = compiled.spread(DeviceFrames(**arrays))
    of_batch = partial(cut, size=config.size, neighbours=config.neighbours)
    mapped = jax.pmap(of_batch)

    def cut_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
        place = batch["place"]
        # Compiled once, however often it is asked for.
        run = jax.jit(of_batch, out_shardings=place.sharding) if kind == "jit" else mapped
        image, label = run(frames, place)
        return {"image": image, "label": label, "index": batch["index"]}

    return cut_batch
