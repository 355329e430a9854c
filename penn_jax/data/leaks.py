"""Keeps one person on one side: the seeded split, the check of a given one, pre-training's pool.

Kin are the cases of one subject, the cases that hold the same scan, and all that these two ties
link in a chain: a copy filed under another subject joins both subjects' cases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from penn_jax.data.manifest import CaseRecord, Split
from penn_jax.types import InputError

_NAMED = 6
"""Cases named in one line; the rest are counted."""

_TOLD = 3
"""Leaks told in the error; the rest are counted."""

Cases = Mapping[str, CaseRecord]
"""The manifest's cases: of each its ``subject``, ``fingerprint``, ``part`` and ``labelled``."""


def identical(cases: Cases) -> list[list[str]]:
    """The names of the cases that hold the same scan, a list for each scan held twice or more."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, case in cases.items():
        found[case["fingerprint"]].append(name)
    return [names for names in found.values() if len(names) > 1]


def kin(cases: Cases) -> dict[str, str]:
    """For each case the name of its kin: the first, in the alphabet, of their subjects."""
    group = {case["subject"]: case["subject"] for case in cases.values()}

    def head(subject: str) -> str:
        while group[subject] != subject:
            subject = group[subject]
        return subject

    for twins in identical(cases):
        first, *others = sorted({head(cases[name]["subject"]) for name in twins})
        group.update(dict.fromkeys(others, first))
    return {name: head(case["subject"]) for name, case in cases.items()}


def seeded_split(cases: Cases, fraction: float, seed: int) -> Split:
    """Split the labelled training cases, kin together, the same for the same seed and cases.

    About ``fraction`` of the kin, at least one and never all, are held out; where all are kin,
    validation stays empty.

    Args:
        cases: the manifest's cases.
        fraction: share of the kin to validate on.
        seed: of the draw.

    Returns:
        Names under ``train`` and ``validation``, sorted.
    """
    kin_of = kin(cases)
    members: dict[str, list[str]] = defaultdict(list)
    for name, case in sorted(cases.items()):
        if case["labelled"] and case["part"] == "train":
            members[kin_of[name]].append(name)
    groups = sorted(members)
    count = min(max(1, round(fraction * len(groups))), len(groups) - 1) if groups else 0
    order = np.random.default_rng(seed).permutation(len(groups))
    held = {groups[k] for k in order[: max(0, count)]}
    return {
        "train": sorted(n for g in groups if g not in held for n in members[g]),
        "validation": sorted(n for g in held for n in members[g]),
    }


def split_leaks(cases: Cases, splits: Iterable[Split]) -> list[str]:
    """Where kin are on two sides: of a split, or of the splits and the test cases.

    Args:
        cases: the manifest's cases.
        splits: its splits.

    Returns:
        A line for each kin and split, and for each kin that the test cases share; none is right.
    """
    kin_of = kin(cases)
    lines, used = [], set()
    for number, split in enumerate(splits):
        train, validation = list(split["train"]), list(split["validation"])
        used |= {*train, *validation}
        for (some, others), what in _shared(cases, kin_of, train, validation):
            lines.append(f"split {number} trains on {some} and validates on {others}, {what}")
    test = [name for name, case in cases.items() if case["part"] == "test"]
    for (some, others), what in _shared(cases, kin_of, sorted(used), test):
        lines.append(f"the splits use {some} and imagesTs has {others}, {what}")
    return lines


def refuse_leaks(raw: Path, cases: Cases, splits: Iterable[Split]) -> None:
    """Make sure that no kin are on two sides.

    Raises:
        InputError: there are such; it names the first few.
    """
    if leaks := split_leaks(cases, splits):
        count = "1 leak" if len(leaks) == 1 else f"{len(leaks)} leaks"
        rest = f"; and {len(leaks) - _TOLD} more" if len(leaks) > _TOLD else ""
        raise InputError(
            raw,
            f"{count}: {'; '.join(leaks[:_TOLD])}{rest}",
            "each scan and each subject on one side",
            "correct splits_final.json or remove the copies, or go on with --allow-leak",
        )


def _shared(
    cases: Cases, kin_of: Mapping[str, str], one: Iterable[str], other: Iterable[str]
) -> Iterable[tuple[tuple[str, str], str]]:
    """The names on either side of each kin that is on both, and what they share."""
    sides = [_grouped(side, kin_of.__getitem__) for side in (one, other)]
    for group in sorted(sides[0].keys() & sides[1].keys()):
        members = [side[group] for side in sides]
        scans = [{cases[name]["fingerprint"] for name in names} for names in members]
        what = "of one subject"
        if same := scans[0] & scans[1]:
            # The copies themselves are what has to be looked at.
            members = [[n for n in names if cases[n]["fingerprint"] in same] for names in members]
            what = "the same scan" if len(same) == 1 else "the same scans"
        yield (listed(members[0]), listed(members[1])), what


def _grouped(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return groups


def pretraining_pool(cases: Cases, split: Split) -> tuple[list[str], dict[str, str]]:
    """Which cases self-supervision may see: no scan of a person whom a result is measured on.

    Args:
        cases: the manifest's cases.
        split: whose training cases, and the unlabelled cases that are not for testing, are asked
            for.

    Returns:
        The cases to pre-train on, and each one left out with the validation or test case that is
        its kin; both in the manifest's order.
    """
    kin_of, train = kin(cases), set(split["train"])
    unseen = list(split["validation"])
    unseen += [name for name, case in cases.items() if case["part"] == "test"]
    relative = {kin_of[name]: name for name in reversed(unseen)}
    asked = [
        name
        for name, case in cases.items()
        if name not in unseen and (name in train or not case["labelled"])
    ]
    pool = [name for name in asked if kin_of[name] not in relative]
    return pool, {name: relative[kin_of[name]] for name in asked if kin_of[name] in relative}


def listed(names: Iterable[str]) -> str:
    """The names in one line, the first few of very many."""
    names = list(names)
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest
