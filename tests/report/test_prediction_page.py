"""The page of masks without a reference, from what ``predictions.json`` may say."""

import re

import numpy as np
import pytest

from penn_jax.report.prediction_page import by_confidence, prediction_page, telling_cases
from penn_jax.report.slices import views

SHAPE = (3, 20, 16)


def part(volume=0.0, components=0, confidence=None, dice=None, value=1):
    return {
        "value": value,
        "volume": volume,
        "components": components,
        "confidence": confidence,
        "expected_dice": dice,
    }


def prediction(confidence, *parts, warnings=(), training_cases=22, **changes):
    return {
        "models": ["runs/<a>", "runs/b"],
        "engine": "jax",
        "mirror": True,
        "scan": ["/scans/x.nii.gz"],
        "confidence": confidence,
        "classes": dict(zip(("tumour <1>", "cyst"), parts, strict=True)),
        "training_cases": training_cases,
        "warnings": list(warnings),
        **changes,
    }


PREDICTIONS = {
    "sure": prediction(0.95, part(12345.6, 1, 0.95, 0.9), part()),
    "empty": prediction(0.0, part(), part(), warnings=["nothing was found"]),
    "odd": prediction(
        0.6, part(100.0, 3, 0.5, 0.4), part(8.25, 1, 0.7, 0.65), warnings=["voxels of <9> mm"]
    ),
    "plain": prediction(0.8, part(900.0, 2, 0.8, 0.75), part(), training_cases=0),
}


@pytest.fixture
def html():
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:, 4:9, 3:8], mask[2, 12:15, 3:8] = 1, 2
    shown = {
        title: views(case, image, np.zeros_like(mask), mask, (1.0, 0.5))
        for title, case in telling_cases(PREDICTIONS).items()
    }
    return prediction_page("masks & more", PREDICTIONS, shown, ["gone (its scan is missing)"])


def test_masks_of_nothing_come_first_and_are_not_drawn():
    assert by_confidence(PREDICTIONS) == ["empty", "odd", "plain", "sure"]
    telling = {"Least certain": "odd", "Second least certain": "plain", "Most certain": "sure"}
    assert telling_cases(PREDICTIONS) == telling
    assert telling_cases({"empty": PREDICTIONS["empty"]}) == {}
    two = {name: PREDICTIONS[name] for name in ("sure", "odd")}
    assert telling_cases(two) == {"Least certain": "odd", "Most certain": "sure"}


def test_the_page_is_sound_and_says_what_was_found(html, read_page):
    page = read_page(html)
    text = " ".join(" ".join(page.text).split())
    assert "4 masks: 1 with nothing found, 1 of scans unlike the training set" in text
    assert "Least certain: odd" in text
    assert "Not drawn: gone (its scan is missing)." in text
    assert "1 of the scans could not be compared" in text
    assert "voxels of <9> mm" in text
    assert "runs/<a> and runs/b" in text
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in html.split("<tr>")[1:]]
    # Smallest, median and largest of 100, 900 and 12,345.6 mm³, and of 1, 2 and 3 components.
    tumour = ["tumour &lt;1&gt;", "3 of 4", "100", "900", "12,346", "1", "2", "3"]
    assert tumour in rows
    assert ["cyst", "1 of 4", "8.25", "8.25", "8.25", "1", "1", "1"] in rows
    assert ["odd", "60.0", "100", "3", "40.0", "8.25", "1", "65.0"] in rows
    assert ["empty", "0.0", "0", "0", "–", "0", "0", "–"] in rows
    assert 'class="class-2"' in html
    assert not re.search(r'<path class="reference"', html)


def test_folders_of_one_mask_or_of_nothing(read_page):
    one = read_page(prediction_page("one", {"sure": PREDICTIONS["sure"]}, {}, []))
    assert "1 mask: 0 with" in " ".join(" ".join(one.text).split())
    assert "None." in " ".join(one.text)
    nothing = read_page(prediction_page("nothing", {"empty": PREDICTIONS["empty"]}, {}, []))
    assert "slices" not in [tag.get("id") for _, tag in nothing.tags]


def test_it_can_be_read_on_a_phone_and_in_the_dark(html, opened_page):
    page = opened_page(html)
    slider = page.locator("input[type=range]").first
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("output").first.inner_text() == "1"
