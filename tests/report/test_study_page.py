"""A study as a page, as Markdown and as CSV."""

import csv
import io
import json

import pytest

from penn_jax.report.metrics import METRICS
from penn_jax.report.study_page import study_page
from penn_jax.report.study_tables import (
    arm_cells,
    run_cells,
    six_cells,
    study_csv,
    study_markdown,
    sweep_cells,
    target_cells,
)


def mean(value, half=0.02):
    return {"value": value, "ci95": [value - half, value + half], "n": 6}


def arm(name, dice, baseline=None, difference=None, **more):
    runs = [
        {
            "seed": seed,
            "fold": 0,
            "folder": f"runs/{name}/fold0-seed{seed}",
            "dice": dice,
            "diverged": False,
            "cases": {
                "sub23": dict.fromkeys(METRICS, dice),
                "sub24": dict.fromkeys(METRICS, 0.75) | {"dice": None if seed else 0.1 + 0.2},
            },
            "curve": [[10, 3.5, 0.5], [20 + seed, 7.0, None], [30, 10.5, dice]],
        }
        for seed in range(2)
    ]
    values = {
        "name": name,
        "description": f"what {name} does",
        "baseline": baseline,
        "dice": mean(dice),
        "six": {
            "pooled": {metric: {"value": dice, "ci95": [0.25, 0.5]} for metric in METRICS},
            "mean": {metric: mean(dice) for metric in METRICS},
        },
        "difference": difference,
        "runs": runs,
        "steps": [30, 30],
        "seconds": [10.5, 11.5],
        "steps_to_target": [20, 30],
        "seconds_to_target": [7.0, 10.0],
        "sweep": [],
        "pretraining": None,
    }
    return values | more


@pytest.fixture
def table():
    gain = {"value": 0.045, "ci95": [0.035, 0.055], "ci95_seeds": [-0.01, 0.1], "p": 0.0004}
    tried = [
        {
            "fold": 0,
            "learning_rate": rate,
            "dice": 0.8,
            "diverged": not chosen,
            "steps_to_target": None,
            "chosen": chosen,
        }
        for rate, chosen in ((0.03, True), (0.1, False))
    ]
    arms = [
        arm("plain", 0.86, steps_to_target=[60, 60], seconds_to_target=[20.0, 22.0], sweep=tried),
        arm("pre <b>|$x$", 0.905, "plain", gain | {"p_holm": 0.0123},
            pretraining={"steps": 500, "seconds": 120.0}),
        arm("never", 0.5, "plain", dict.fromkeys((*gain, "p_holm")),
            steps_to_target=[10, None], seconds_to_target=[3.0, None]),
    ]  # fmt: skip
    return {
        "name": "efficiency",
        "title": "Does it pay?",
        "date": "2026-11-23",
        "target_dice": 0.85,
        "seeds": [0, 1],
        "folds": [0],
        "hashes": {"definition": "aa11", "data": "bb22", "code": "cc33", "results": "dd44"},
        "machine": {
            "versions": {"jax": "0.10.2", "orbax": None},
            "python": "3.11.7",
            "commit": None,
            "devices": ["cpu:cpu"],
        },
        "command": "penn study CONFIG --data PREPARED --out efficiency",
        "repeatable": True,
        "arms": arms,
    }


def test_arms_with_both_intervals_and_the_corrected_p(table):
    plain, pre, never = arm_cells(table).rows
    # By hand from the fixture: shares in % with one decimal, differences in points with two.
    assert plain == ("plain", "86.0", "84.0 to 88.0", "6", *["–"] * 7)
    assert pre[4:] == (
        *("plain", "+4.50", "+3.50 to +5.50", "-1.00 to +10.00", "<0.001", "0.012"),
        "120",
    )
    assert never[4:] == ("plain", *["–"] * 6)


def test_time_to_the_target_is_the_median_and_never_counts_as_longest(table):
    plain, pre, never = target_cells(table).rows
    assert plain == ("plain", "2 of 2", "60", "60, 60", "–", "21", "–", "–", "21")
    # Medians 25 steps and 8.5 s against 60 and 21: 2.40 and 2.47 times; 8.5 + 120 s together.
    assert pre[1:] == ("2 of 2", "25", "20, 30", "2.40", "8", "2.47", "120", "128")
    # Half of the runs never reached it, so the median lies between 10 and never.
    assert never[1:] == (
        "1 of 2",
        "not reached",
        "10, –",
        "–",
        "not reached",
        "–",
        "–",
        "not reached",
    )


def test_six_metrics_by_either_average_with_their_intervals(table):
    pooled, mean, *_ = six_cells(table).rows
    assert pooled == ("plain", "pooled", *["86.0 (25.0 to 50.0)"] * 6)
    assert mean == ("plain", "mean", *["86.0 (84.0 to 88.0)"] * 6)


def test_a_run_that_diverged_is_told_as_such(table):
    table["arms"][0]["runs"][1]["diverged"] = True
    assert [row[4] for row in run_cells(table).rows[:2]] == ["86.0", "diverged"]
    assert [row[3] for row in sweep_cells(table).rows] == ["80.0", "diverged"]


def test_the_page_is_sound_and_holds_every_part(table, read_page):
    html = study_page(table)
    page = read_page(html)
    text = " ".join(page.text)
    assert "pre <b>|$x$" in text  # as text: escaped in the source, no formula in a plot
    assert "<b>" not in html
    for part in ("Does it pay?", "+4.50", "2.40", "0.012", "aa11", "dd44", "jax 0.10.2", "0.1"):
        assert part in text
    named = {attributes["id"] for tag, attributes in page.tags if tag == "h2"}
    assert named == {
        "result", "differences", "target", "curves", "cases", "metrics", "sweep", "runs", "repeat"
    }  # fmt: skip
    assert len([svg for svg in page.all("svg") if "role" in svg]) == 4
    assert study_page(json.loads(json.dumps(table))) == html


def test_parts_that_a_study_lacks_are_left_out(table, read_page):
    table |= {"target_dice": None, "arms": [arm("alone", 0.7)]}
    table["arms"][0]["runs"][0]["curve"] = []
    page = read_page(study_page(table))
    named = {attributes["id"] for tag, attributes in page.tags if tag == "h2"}
    assert named == {"result", "curves", "cases", "metrics", "runs", "repeat"}
    assert "Steps and seconds" not in study_markdown(table)


def test_markdown_keeps_its_columns_whatever_an_arm_is_called(table):
    lines = study_markdown(table).splitlines()
    rows = [line for line in lines if line.startswith("| pre")]
    assert rows
    assert all(line.startswith(r"| pre <b>\|$x$ |") for line in rows)
    assert (
        "| never | 1 of 2 | not reached | 10, – | – | not reached | – | – | not reached |" in lines
    )
    assert "- Hash of the results: dd44" in lines
    assert "    penn study CONFIG --data PREPARED --out efficiency" in lines


def test_csv_gives_every_number_back_to_the_last_bit(table):
    rows = list(csv.DictReader(io.StringIO(study_csv(table))))
    assert len(rows) == 3 * 2 * 2  # arms, runs, cases
    second = rows[1]
    assert (second["arm"], second["seed"], second["case"]) == ("plain", "0", "sub24")
    assert float(second["dice"]) == 0.1 + 0.2  # 0.30000000000000004
    assert rows[3]["dice"] == ""  # undefined in the other run
    assert {float(rows[3][metric]) for metric in METRICS if metric != "dice"} == {0.75}


def test_the_page_in_a_browser(table, opened_page):
    page = opened_page(study_page(table))
    assert page.locator("figure svg text", has_text="pre <b>|$x$").first.is_visible()
