"""The table of a study as rows: for its page, for Markdown and for CSV.

The table is plain JSON::

    name, title, note (may be missing), date, target_dice (or None), seeds, folds
    hashes      {definition, data, code, results}
    machine     what ``environment.json`` of a run says: versions, python, commit, devices
    command     what repeats the study
    repeatable  whether a repeat on the same machine must give the same hash of the results
    arms        one of these for each arm, in the order of the page:
        name, description
        baseline    name of the arm that it is compared with, or None
        dice        mean over cases {value, ci95, n}
        six         {pooled: {metric: {value, ci95}}, mean: {metric: {value, ci95, n}}}
        difference  from the baseline {value, ci95, ci95_seeds, p, p_holm}; None without one
        runs        [{seed, fold, folder, learning_rate, dice, diverged,
                      cases: {case: {metric: value}}, curve: [[step, seconds, Dice], …]}]
        steps, seconds                        of training, one value a run
        steps_to_target, seconds_to_target    one value a run, None where it was not reached
        sweep       [{fold, learning_rate, dice, diverged, steps_to_target, chosen}]
        pretraining {steps, seconds} of all that had to be run before one of its runs, teachers and
                    what started them included, mean over runs; or None

Metrics are shares of 1, None where they are undefined.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from penn_jax.report.metrics import METRICS
from penn_jax.report.tables import (
    NAMES,
    UNDEFINED,
    Cells,
    machine,
    markdown,
    number,
    points,
    points_span,
    span,
)

_Number = int | float

_NOT_REACHED = "not reached"


def study_markdown(table: Mapping[str, Any]) -> str:
    """The study's tables, hashes and how to repeat it, in Markdown."""
    parts = [f"# {table['title']}\n", f"{intervals_note(table)}\n", markdown(arm_cells(table))]
    if table["target_dice"] is not None:
        parts += [f"## {target_title(table)}\n", markdown(target_cells(table))]
    parts += ["## Six metrics\n", markdown(six_cells(table))]
    if swept(table):
        parts += ["## Learning rates tried\n", markdown(sweep_cells(table))]
    parts += ["## Runs\n", markdown(run_cells(table))]
    parts += ["## Repeat\n", f"    {table['command']}\n", f"{repeat_note(table)}\n"]
    parts += [f"- {name}: {value}" for name, value in provenance(table).items()]
    return "\n".join(parts) + "\n"


def study_csv(table: Mapping[str, Any]) -> str:
    """One row for each run and case: the numbers that everything else is made from."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(("arm", "seed", "fold", "run", "case", *METRICS))
    for arm in table["arms"]:
        for run in arm["runs"]:
            for case, values in run["cases"].items():
                # repr gives back the very same float.
                row = ["" if values[m] is None else repr(float(values[m])) for m in METRICS]
                writer.writerow((arm["name"], run["seed"], run["fold"], run["folder"], case, *row))
    return written.getvalue()


def arm_cells(table: Mapping[str, Any]) -> Cells:
    """One row an arm: mean Dice, and its difference from the baseline."""
    header = (
        "Arm",
        "Dice (%)",
        "95 % interval",
        "Cases",
        "Compared with",
        "Difference (points)",
        "95 %, these networks",
        "95 %, other seeds too",
        "p",
        "p, corrected",
        "Runs before it (s)",
    )
    return Cells(header, [_arm_row(arm) for arm in table["arms"]])


def _arm_row(arm: Mapping[str, Any]) -> tuple[str, ...]:
    dice, difference = arm["dice"], arm["difference"]
    start = (arm["name"], number(dice["value"], 100.0), span(dice["ci95"], 100.0), str(dice["n"]))
    before = arm["pretraining"]
    end = UNDEFINED if before is None else f"{before['seconds']:,.0f}"
    if difference is None:
        return (*start, *[UNDEFINED] * 6, end)
    return (
        *start,
        arm["baseline"],
        points(difference["value"]),
        points_span(difference["ci95"]),
        points_span(difference["ci95_seeds"]),
        _probability(difference["p"]),
        _probability(difference["p_holm"]),
        end,
    )


def target_cells(table: Mapping[str, Any]) -> Cells:
    """One row an arm: the median over runs of what it took to reach the target.

    A run that never reached it counts as longer than any that did.
    """
    header = (
        "Arm",
        "Runs that reached it",
        "Steps",
        "Of each run",
        "Times faster",
        "Seconds",
        "Times faster",
        "Runs before it (s)",
        "Together (s)",
    )
    arms = {arm["name"]: arm for arm in table["arms"]}
    rows = []
    for arm in table["arms"]:
        steps, seconds = _to_target(arm)
        slower = (None, None)
        if arm["baseline"] is not None:
            slower = _to_target(arms[arm["baseline"]])
        before = arm["pretraining"] and arm["pretraining"]["seconds"]
        each = arm["steps_to_target"]
        reached = sum(value is not None for value in each)
        rows.append(
            (
                arm["name"],
                f"{reached} of {len(each)}",
                _count(steps),
                ", ".join("–" if value is None else f"{value:,}" for value in each),
                _ratio(slower[0], steps),
                _count(seconds),
                _ratio(slower[1], seconds),
                UNDEFINED if before is None else f"{before:,.0f}",
                _count(None if seconds is None else seconds + (before or 0.0)),
            )
        )
    return Cells(header, rows)


def _to_target(arm: Mapping[str, Any]) -> tuple[_Number | None, _Number | None]:
    return _median(arm["steps_to_target"]), _median(arm["seconds_to_target"])


def six_cells(table: Mapping[str, Any]) -> Cells:
    """Two rows an arm: the six metrics pooled over pixels, and their means over cases."""
    header = ("Arm", "Average", *(f"{NAMES[metric]} (%)" for metric in METRICS))
    rows = [
        (
            arm["name"],
            average,
            *(
                f"{number(of[metric]['value'], 100.0)} ({span(of[metric]['ci95'], 100.0)})"
                for metric in METRICS
            ),
        )
        for arm in table["arms"]
        for average, of in arm["six"].items()
    ]
    return Cells(header, rows)


def swept(table: Mapping[str, Any]) -> bool:
    """Whether more than one learning rate was tried anywhere."""
    return any(arm["sweep"] for arm in table["arms"])


def sweep_cells(table: Mapping[str, Any]) -> Cells:
    """One row for each learning rate tried of each arm."""
    rows = [
        (
            arm["name"],
            str(tried["fold"]),
            f"{tried['learning_rate']:g}",
            _dice(tried),
            UNDEFINED if table["target_dice"] is None else _count(tried["steps_to_target"]),
            "yes" if tried["chosen"] else "",
        )
        for arm in table["arms"]
        for tried in arm["sweep"]
    ]
    header = ("Arm", "Fold", "Learning rate", "Dice (%)", "Steps to the target", "Chosen")
    return Cells(header, rows)


def run_cells(table: Mapping[str, Any]) -> Cells:
    """One row a run."""
    rows = [
        (
            run["folder"],
            arm["name"],
            str(run["seed"]),
            str(run["fold"]),
            _dice(run),
            f"{steps:,}",
            f"{seconds:,.0f}",
        )
        for arm in table["arms"]
        for run, steps, seconds in zip(arm["runs"], arm["steps"], arm["seconds"], strict=True)
    ]
    return Cells(("Run", "Arm", "Seed", "Fold", "Dice (%)", "Steps", "Seconds"), rows)


def intervals_note(table: Mapping[str, Any]) -> str:
    """What was repeated, and what the intervals are over."""
    note = f"{table['note']} " if table.get("note") else ""
    return (
        f"{note}{_counted(len(table['arms']), 'arm')}, {_counted(len(table['seeds']), 'seed')} and "
        f"{_counted(len(table['folds']), 'fold')}. Differences are paired case by case. Their "
        "first interval asks whether these trained networks would differ on other cases too, the "
        "second whether networks of other seeds would; p belongs to the second and is corrected "
        "for the number of comparisons (Holm)."
    )


def repeat_note(table: Mapping[str, Any]) -> str:
    """Which hashes a repeat must give."""
    first = "The same definition, data and code give the same hashes of these"
    if table["repeatable"]:
        return f"{first}, and on the same machine that of the results."
    return f"{first}. The budgets are in seconds: results differ as the machine's speed does."


def target_title(table: Mapping[str, Any]) -> str:
    """What the target is."""
    return f"Steps and seconds to Dice {table['target_dice']:g}"


def provenance(table: Mapping[str, Any]) -> dict[str, str]:
    """Where and when, and the hashes by which a repeat is compared."""
    hashes = {f"Hash of the {name}": value for name, value in table["hashes"].items()}
    return {"Date": table["date"], **hashes, **machine(table["machine"])}


def _dice(run: Mapping[str, Any]) -> str:
    return "diverged" if run["diverged"] else number(run["dice"], 100.0)


def _probability(value: float | None) -> str:
    if value is None:
        return UNDEFINED
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _median(values: Sequence[_Number | None]) -> _Number | None:
    """The median with None as infinity; None where that is the median."""
    if not values:
        return None
    middle = statistics.median(math.inf if value is None else value for value in values)
    return None if math.isinf(middle) else middle


def _ratio(slower: _Number | None, faster: _Number | None) -> str:
    return UNDEFINED if slower is None or not faster else f"{slower / faster:.2f}"


def _count(value: _Number | None) -> str:
    return _NOT_REACHED if value is None else f"{value:,.0f}"


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"
