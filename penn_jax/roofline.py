"""What a compiled training step takes at best on a chip: its roofline, and rings of such chips.

::

    computing   C = max(operations / peak, bytes / memory bandwidth), or cycles / clock
    a ring      R = passes · ((n - 1) / n · bytes / (2 · link) + hops · 1 µs)
    the step    C + ΣR where nothing overlaps, max(C, ΣR) where everything does

Every figure is one on paper, none a measurement.

References:
    Williams et al., "Roofline", Communications of the ACM 52, 2009; Patarasuk and Yuan, "Bandwidth
    optimal all-reduce algorithms for clusters of workstations", JPDC 69, 2009 (the ring).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Chip(NamedTuple):
    """What one chip does a second, and holds."""

    flops: float
    """Operations a second in bfloat16, in which the matrix units take their inputs."""
    memory: int
    """Bytes."""
    bandwidth: float
    """Bytes a second between the memory and the chip."""
    link: float
    """Bytes a second through one link of the interconnect, one way."""
    axes: int
    """Of the grid in which the chips are linked."""
    clock: float
    """Cycles a second."""
    most: int
    """Chips of the largest slice."""


_GIB = 2**30

CHIPS = {
    "v4": Chip(275e12, 32 * _GIB, 1.2e12, 4.5e10, 3, 1.05e9, 4096),
    "v5e": Chip(197e12, 16 * _GIB, 0.8e12, 4.5e10, 2, 1.5e9, 256),
    "v5p": Chip(459e12, 95 * _GIB, 2.765e12, 9e10, 3, 1.75e9, 6144),
    "v6e": Chip(918e12, 32 * _GIB, 1.6e12, 9e10, 2, 1.75e9, 256),
}
"""Operations, memory, bandwidth and slices: cloud.google.com/tpu/docs, pages v4, v5e, v5p and v6e.
Links: Austin et al., "How to scale your model", 2025, jax-ml.github.io/scaling-book/tpus, a tenth
below what those pages promise. Clocks: the peak over the matrix units' operations a cycle, two for
each of 8 (v4, v5p) or 4 (v5e) times 128², or 4 times 256² (v6e) cells."""

HOP_SECONDS = 1e-6
"""From one chip to the next, however short the message: the scaling book's figure."""

PASSES = {
    "all-reduce": 2,
    "all-gather": 1,
    "reduce-scatter": 1,
    "all-to-all": 1,
    "collective-permute": 1,
}
"""How often each byte goes round the ring."""

SCALES = tuple(2**power for power in range(9))
"""Numbers of devices for which weak scaling is told."""


class Collective(NamedTuple):
    """Operations of one kind, in which all devices take part."""

    kind: str
    count: int
    size: int
    """Bytes, of all of them together, of the whole array: for a scatter before it, else after."""


def collective_seconds(collectives: Sequence[Collective], chip: Chip, grid: Sequence[int]) -> float:
    """Seconds a step of all collectives, one after the other, by the ring model.

    The rings go along one axis of the grid after the other, which together moves as many bytes as
    one ring through all n chips. Both directions of an axis' links are used.

    Args:
        collectives: of one step.
        chip: whose links they use.
        grid: chips along each axis.
    """
    devices = math.prod(grid)
    hops = sum(side - 1 for side in grid)
    return sum(
        PASSES[each.kind]
        * ((devices - 1) / devices * each.size / (2 * chip.link) + each.count * hops * HOP_SECONDS)
        for each in collectives
    )


def grid_of(devices: int, axes: int) -> tuple[int, ...]:
    """The most cube-like grid of a power of two of devices."""
    sides = [1] * axes
    for doubling in range(devices.bit_length() - 1):
        sides[doubling % axes] *= 2
    return tuple(sorted(sides))


def weak_scaling(
    computing: float, collectives: Sequence[Collective], chip: Chip
) -> list[dict[str, float]]:
    """Patches a second and device, as a share of those of one device alone, for ``SCALES``.

    The batch of a device stays the same, and with it the bytes of each collective: gradients and
    statistics are as large on one device as on all.

    Args:
        computing: seconds a step without collectives.
        collectives: of one step.
        chip: of each device.

    Returns:
        For each number of ``devices`` the share at worst (``exposed``: nothing of the collectives
        overlaps with computing) and at best (``hidden``: all that fits does).
    """
    table = []
    for devices in SCALES:
        ring = collective_seconds(collectives, chip, grid_of(devices, chip.axes))
        table.append(
            {
                "devices": devices,
                "exposed": computing / (computing + ring),
                "hidden": computing / max(computing, ring),
            }
        )
    return table
