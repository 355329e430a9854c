"""What a rehearsal found, as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GIB = 2**30


def lines(found: Mapping[str, Any]) -> list[str]:
    """What ``penn_jax.rehearse.rehearse`` found, for a person."""
    patch = "×".join(map(str, found["patch"][:-1]))
    parts = f" in {n} parts" if (n := found["accumulate"]) > 1 else ""
    versions = ", ".join(f"{name} {v}" for name, v in found["versions"].items() if v)
    text = [
        f"{found['config']} on {found['topology']}: {found['devices']} devices ({found['kind']}), "
        f"{found['patches']} patches each{parts} of {patch} voxels, {found['patch'][-1]} channels "
        f"and {found['classes']} classes, {found['batch']} in all; compiled by {versions}"
    ]
    if "flops" not in found:
        text.append(f"does not fit       {found['refusal']}")
    else:
        text += _step_lines(found)
    if found["largest"] is not None:
        text.append(f"largest batch      {_largest(found['largest'])}")
    if found["weak_scaling"]:
        text += _scaling_lines(found["weak_scaling"])
    return [*text, "assumed", *(f"  - {each}" for each in found["assumptions"])]


def _step_lines(found: Mapping[str, Any]) -> list[str]:
    held = found["memory"]
    gib = {name: f"{size / _GIB:.2f}" for name, size in held.items()}
    text = [
        f"a step and device  {found['flops'] / 1e9:.1f} GFLOP, {found['bytes'] / 1e9:.2f} GB read "
        "and written",
        f"memory a device    {gib['total']} of {found['capacity'] / _GIB:.1f} GiB: "
        f"arguments {gib['arguments']}, temporaries {gib['temporaries']}, output {gib['output']} "
        f"(of which in the arguments' place {gib['reused']}), program {gib['program']}",
    ]
    if seconds := found["seconds"]:
        ms = {name: f"{1e3 * value:.2f}" for name, value in seconds.items()}
        bound = max(("operations", "memory"), key=lambda name: seconds[name])
        rate = found["batch"] / seconds["step"]
        text += [
            f"a step on paper    {ms['step']} ms, {rate:.0f} patches/s: "
            f"operations {ms['operations']}, memory {ms['memory']} (bound by {bound}), "
            f"and collectives {ms['collectives']}",
            f"by the compiler    {ms['compiler']} ms of computing",
        ]
    for each in found["collectives"]:
        size = f"{each['size'] / 1e6:.2f} MB in all"
        text.append(f"collectives        {each['kind']}: {each['count']}, {size}")
    return text


def _largest(largest: Mapping[str, Any]) -> str:
    how = f"found by {largest['compilations']} compilations"
    refused = largest["refused"]
    if not largest["fits"]:
        return f"not even one patch a device fits ({how})"
    if largest["recomputed"]:
        end = "in less memory than fewer took: from here on the compiler recomputes to save memory"
    elif refused is not None:
        end = f"{refused} do not"
    else:
        end = "the search ended before more failed"
    return f"{largest['fits']} patches a device fit, {end} ({how})"


def _scaling_lines(tables: Mapping[str, Any]) -> list[str]:
    devices = "".join(f"{row['devices']:>6}" for row in tables["roofline"])
    text = [f"weak scaling on paper        {devices}  devices"]
    for kind, table in tables.items():
        for key in ("exposed", "hidden"):
            shares = "".join(f"{row[key]:>6.2f}" for row in table)
            text.append(f"  {f'{kind}, collectives {key}':<27}{shares}")
    return text
