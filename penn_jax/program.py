"""What the text of a compiled program says: its collectives, its cycles, how often its loops run.

The text is ``Compiled.as_text()``: computations one after the other, the entry last, each a line of
its name and a line for each operation; an operation names the computations that it calls.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from penn_jax.roofline import PASSES, Collective

Computations = dict[str, list[str]]
"""Name -> its lines."""

_ENTRY = "ENTRY"
_COLLECTIVE = re.compile(rf"= (?P<result>.+?) (?P<kind>{'|'.join(PASSES)})(?P<begun>-start)?\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_ARRAY = re.compile(r"\b(?:pred|bf|[fsu])(?P<bits>\d*)\w*\[(?P<sizes>[\d,]*)\]")
_LOOP = re.compile(r" while\(.*\bcondition=(?P<condition>%[^\s,]+), body=(?P<body>%[^\s,]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LIMIT = re.compile(r"= [su]\d+\[\]\S* constant\((\d+)\)")
_CHOICE = re.compile(r"\bbranch_computations=\{(?P<branches>.+?)\}")
_CALLED = re.compile(r"\b(?:calls|to_apply)=(?P<name>%[^\s,]+)")


def collectives(program: str, devices: int) -> list[Collective]:
    """The collectives of one step, one entry a kind; those in a loop as often as it runs.

    Args:
        program: the text.
        devices: that take part.
    """
    computations = _computations(program)
    times = _times(computations)
    found: dict[str, Collective] = {}
    for name, operations in computations.items():
        for match in _COLLECTIVE.finditer("\n".join(operations)):
            kind, before = match["kind"], found.get(match["kind"])
            arrays = [_bytes(array) for array in _ARRAY.finditer(match["result"])]
            if match["begun"] and kind != "all-reduce":
                # Of these the begun operation returns its operands, its results and its own marks.
                arrays = [max(arrays)]
            size = sum(arrays) * (devices if kind == "reduce-scatter" else 1)
            _, count, total = before or (kind, 0, 0)
            found[kind] = Collective(kind, count + times[name], total + times[name] * size)
    return [each for _, each in sorted(found.items()) if each.count]


def cycles(program: str) -> int | None:
    """Cycles of one step in the compiler's own model of a TPU; None where the text has none.

    Those of the entry's operations, of loops as often as they run, of alternatives the longest.
    """
    computations = _computations(program)

    def of(name: str) -> int:
        total = 0
        for line in computations.get(name, ()):
            total += sum(map(int, _CYCLES.findall(line)))
            total += sum(trips * of(body) for body, trips in _loops(line, computations))
            if choice := _CHOICE.search(line):
                total += max(of(branch) for branch in choice["branches"].split(", "))
        return total

    return of(_ENTRY) or None


def loops(program: str) -> list[int]:
    """How often each loop runs, those of the entry first."""
    found = _computations(program)
    return [trips for lines in found.values() for line in lines for _, trips in _loops(line, found)]


def _computations(program: str) -> Computations:
    """Those of a program; what stands before the first has the name of the entry."""
    name, found = _ENTRY, {_ENTRY: []}
    for line in program.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.split(maxsplit=1)[0]
        found.setdefault(name, []).append(line)
    return found


def _times(computations: Computations) -> dict[str, int]:
    """How often each computation runs in one step, alternatives as if all of them did."""
    times = dict.fromkeys(computations, 0) | {_ENTRY: 1}
    # What is called stands before what calls it.
    order = [_ENTRY, *(name for name in reversed(computations) if name != _ENTRY)]
    for name in order:
        for line in computations[name]:
            for called, trips in _calls(line, computations):
                if called in times:
                    times[called] += trips * times[name]
    return times


def _calls(line: str, computations: Computations) -> Iterator[tuple[str, int]]:
    yield from _loops(line, computations)
    if choice := _CHOICE.search(line):
        yield from ((branch, 1) for branch in choice["branches"].split(", "))
    if called := _CALLED.search(line):
        yield called["name"], 1


def _loops(line: str, computations: Computations) -> Iterator[tuple[str, int]]:
    """(body, how often it runs) of a line that is a loop; once where the text does not tell.

    A compiler for CPUs writes it beside the loop. That for TPUs does not: its condition compares
    the count, from 0 as ``jax.lax.scan`` begins, with the one constant in it.
    """
    if loop := _LOOP.search(line):
        told = _TRIPS.findall(line)
        limits = told or _LIMIT.findall("\n".join(computations.get(loop["condition"], ())))
        yield loop["body"], int(limits[0]) if len(limits) == 1 else 1


def _bytes(array: re.Match[str]) -> int:
    bits = int(array["bits"] or 8)
    return math.prod(int(size) for size in array["sizes"].split(",") if size) * bits // 8
