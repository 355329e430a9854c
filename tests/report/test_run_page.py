"""The page of a run, from results made up here."""

from dataclasses import replace

import numpy as np
import pytest

from penn_jax.report.calibration import reliability
from penn_jax.report.failures import Traits, limits
from penn_jax.report.metrics import confusion
from penn_jax.report.run_page import Cases, Origin, run_page, telling_cases
from penn_jax.report.run_tables import RunResult, calibration_cells, quartile_cells, six_cells
from penn_jax.report.slices import views

LABELS = {"V1": 1, "background": 0, "V2": 2}
SHAPE = (3, 20, 16)


def masks(case, shift=0):
    """Reference and prediction of case number ``case``, further apart the higher it is."""
    reference, prediction = np.zeros((2, *SHAPE), np.uint8)
    reference[:, 4:12, 3:9], reference[:, 14:18, 3:9] = 1, 2
    prediction[:, 4 + case + shift : 12, 3:9], prediction[:, 14:18, 3 + case : 9] = 1, 2
    return reference, prediction


def result(name="mine", shift=0, cases=5):
    counts, merged, found = {}, {}, []
    for number in range(cases):
        reference, prediction = masks(number, shift)
        counts[f"case<{number}>"] = confusion(prediction, reference, [1, 2])
        merged[f"case<{number}>"] = confusion(
            np.minimum(prediction, 1), np.minimum(reference, 1), [1]
        )
        found.append(reliability(np.eye(3, dtype=np.float32)[prediction], reference))
    log = [
        {"step": 10, "seconds": 1.0, "loss": 0.9},
        {"step": 20, "seconds": 2.0, "loss": None},
        {"step": 20, "seconds": 2.0, "dice": 0.5},
        {"step": 30, "seconds": 3.0, "dice": 0.6},
    ]
    return RunResult(name, log, counts, merged, sum(found[1:], found[0]), found[0])


@pytest.fixture
def parts():
    run = result()
    traits = {case: Traits(192.0, 2.0, 0.0) for case in run.counts}
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    shown = {
        title: views(case, image, *masks(int(case[5])), spacing=(1.0, 0.5))
        for title, case in telling_cases(run).items()
    }
    origin = Origin(
        {"Data": "ab" * 32}, ["penn train A --data B"], '{"name": "<x>"}', ["case & case are twins"]
    )
    return run, Cases(traits, limits([Traits(500.0, 2.0, 0.0)]), shown), origin


def test_the_page_is_sound_and_holds_every_part(parts, read_page):
    run, cases, origin = parts
    html = run_page(run, result("other", shift=1), LABELS, cases, origin)
    page = read_page(html)
    text = " ".join(page.text)
    sections = {attributes["id"] for tag, attributes in page.tags if tag == "h2"}
    assert sections == {
        "metrics", "classes", "curves", "cases", "calibration", "slices", "failures", "origin"
    }  # fmt: skip
    for part in ("Run mine", "other", "case<4>", "ab" * 32, "twins", '"<x>"', "penn train A"):
        assert part in text
    assert "out of 2" in text  # two validations chose the checkpoint
    assert "small" in text  # 192 mm³ where all of the training cases have 500
    for name in ("Best: case<0>", "Median: case<2>", "Worst: case<4>"):
        assert name in text
    assert run_page(run, result("other", shift=1), LABELS, cases, origin) == html


def test_one_slice_of_a_case_is_seen_without_the_script(parts, read_page):
    run, cases, origin = parts
    page = read_page(run_page(run, None, LABELS, cases, origin))
    slices = [attributes for attributes in page.all("div") if "data-number" in attributes]
    assert len(slices) == 3 * SHAPE[0]
    assert sum("hidden" not in attributes for attributes in slices) == 3
    assert all("hidden" in label for label in page.all("label") if label.get("class") == "scroller")
    scrollers = [one for one in page.all("input") if one["type"] == "range"]
    assert {(one["min"], one["max"]) for one in scrollers} == {("1", "3")}
    # A voxel is 1 mm wide and 0.5 mm high: 20 columns and 16 rows.
    boxes = {svg["viewbox"] for svg in page.all("svg") if "slice" in svg.get("aria-label", "")}
    assert boxes == {"0 0 20.0 8.0"}


def test_one_class_one_case_and_no_foreground_at_all(read_page):
    empty = np.zeros(SHAPE, np.uint8)
    nothing = confusion(empty, empty, [1])
    found = reliability(np.eye(2, dtype=np.float32)[empty], empty, np.zeros(SHAPE, bool))
    run = RunResult("r", [{"step": 1, "loss": 1.0}], {"a": nothing}, {"a": nothing}, found, found)
    assert telling_cases(run) == {}
    nan = float("nan")
    cases = Cases({"a": Traits(nan, nan, nan)}, limits([]), {})
    page = read_page(run_page(run, None, {"background": 0, "t": 1}, cases, Origin({}, [], "", [])))
    assert "nan" not in " ".join(page.text)
    assert "classes" not in {attributes.get("id") for _, attributes in page.tags}


def test_six_metrics_beside_a_baseline_and_their_paired_difference():
    run, other = result(), result("other", shift=1)
    row = dict(zip(("Dice",), six_cells(run, other).rows[-1:], strict=True))["Dice"]

    # Case n finds (8 - n) · 6 of 48 voxels of V1 and (6 - n) · 4 of 24 of V2 in every slice, and
    # nothing false: Dice 2r / (1 + r) of those shares r; the other run finds 6 fewer of V1.
    def dice(case, shift):
        return np.mean([2 * r / (1 + r) for r in ((8 - case - shift) / 8, (6 - case) / 6)])

    ours, theirs = ([dice(case, shift) for case in range(5)] for shift in (0, 1))
    assert row[0] == "Dice"
    assert row[3] == f"{100 * np.mean(ours):.1f}"
    assert row[7] == f"{100 * np.mean(theirs):.1f}"
    assert row[8] == f"{100 * (np.mean(ours) - np.mean(theirs)):+.2f}"
    assert len(six_cells(run, None).header) == len(six_cells(run, None).rows[0]) == 6


def test_quartiles_and_calibration_of_each_run():
    run = result()
    (row,) = quartile_cells([run]).rows
    dice = sorted(run.dice().values())
    # Five cases: the quartiles are the cases themselves.
    assert row[1:] == (*[f"{100 * value:.1f}" for value in dice], "5")
    sure = replace(
        run, near=reliability(np.eye(2, dtype=np.float32)[[1, 0]], np.array([1, 0], np.uint8))
    )
    assert calibration_cells([sure]).rows[0][1] == "0.00"  # sure and right


def test_telling_cases_are_different_ones():
    assert telling_cases(result(cases=1)) == {"Best": "case<0>"}
    assert telling_cases(result(cases=2)) == {"Best": "case<0>", "Worst": "case<1>"}


def test_the_page_in_a_browser(parts, opened_page):
    run, cases, origin = parts
    page = opened_page(run_page(run, result("other", shift=1), LABELS, cases, origin))
    scene = page.locator(".case").first
    shown = scene.locator(".slices > div:visible")
    before = shown.get_attribute("data-number")
    scene.locator("input[type=range]").press("End")
    assert before != shown.get_attribute("data-number") == "3"
    assert scene.locator("output").inner_text() == "3"
    assert shown.locator("path").count() == 4  # two classes, outlined twice
    scene.locator("input[type=checkbox]").check()
    assert shown.locator("path:visible").count() == 0


def test_a_page_that_cannot_be_read_is_found(parts, opened_page):
    html = run_page(parts[0], None, LABELS, *parts[1:])
    assert "--soft: #545d68" in html
    with pytest.raises(AssertionError, match="color-contrast"):
        opened_page(html.replace("--soft: #545d68", "--soft: #cccccc"))
