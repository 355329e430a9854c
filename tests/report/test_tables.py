"""Tables, and the figures that stand beside them."""

import json

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from penn_jax.report.figures import learning_curves, overlay
from penn_jax.report.metrics import METRICS
from penn_jax.report.tables import (
    label_markdown,
    label_table,
    six_metric_markdown,
    six_metric_table,
)
from penn_jax.types import InputError


@pytest.fixture
def result():
    """As ``evaluate`` lays it out; Dice differs from the rest, recall is undefined."""
    mean = {name: {"value": 0.5, "ci95": [0.4, 0.6], "n": 12} for name in METRICS}
    mean["dice"] = {"value": 0.8756, "ci95": [0.8512, 0.9], "n": 11}
    mean["recall"] = {"value": None, "ci95": None, "n": 0}
    mean["hd95"] = {"value": 3.456, "ci95": [2.0, 5.0], "n": 10}
    mean["mean_surface_distance"] = {"value": 0.456, "ci95": None, "n": 1}
    pooled = dict.fromkeys(METRICS, 0.25) | {"dice": 0.9111}
    intervals = {name: [0.2, 0.3] for name in METRICS} | {"iou": None}
    labels = {"1": {"pooled": pooled, "mean": mean}, "2": {"pooled": pooled, "mean": mean}}
    return {"pooled": pooled, "pooled_ci95": intervals, "mean": mean, "labels": labels}


def printed(table):
    console = Console(width=80, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_six_metric_table_has_every_number_in_its_place(result):
    rows = {}
    for line in six_metric_markdown(result).splitlines()[2:]:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[name] = cells
    # By hand from the fixture: × 100, one decimal; millimetres with two.
    assert rows["Dice (%)"] == ["91.1", "20.0 to 30.0", "87.6", "85.1 to 90.0", "11"]
    assert rows["Recall (%)"] == ["25.0", "20.0 to 30.0", "–", "–", "0"]
    assert rows["IoU (%)"] == ["25.0", "–", "50.0", "40.0 to 60.0", "12"]
    assert rows["HD95 (mm)"] == ["–", "–", "3.46", "2.00 to 5.00", "10"]
    assert rows["Mean distance (mm)"] == ["–", "–", "0.46", "–", "1"]
    assert len(rows) == len(METRICS) + 2


def test_the_terminal_shows_the_same_cells_in_eighty_columns(result):
    text = printed(six_metric_table(result, title="validation"))
    assert "validation" in text
    for line in six_metric_markdown(result).splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert any(
            [part.strip() for part in row.strip("│").split("│")] == cells
            for row in text.splitlines()
        )


def test_the_label_table_names_the_labels(result):
    text = label_markdown(result, {1: "V1"})
    assert "| V1 | 91.1 | 87.6 | 85.1 to 90.0 | 11 | 3.46 |" in text
    assert "| 2 | 91.1 |" in text
    assert "V1" in printed(label_table(result, {1: "V1"}))


def test_a_result_read_back_from_json_gives_the_same_table(result):
    assert six_metric_markdown(json.loads(json.dumps(result))) == six_metric_markdown(result)


# Figures


@pytest.fixture
def drawn():
    image = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    reference, prediction = np.zeros((2, 40, 30), np.uint8)
    reference[5:20, 5:20], prediction[5:20, 8:23] = 1, 1
    reference[25:, 10:20], prediction[26:, 10:20] = 2, 2  # up to the border
    reference[0, 0] = 255
    return image, reference, prediction


def colours(path):
    """The colours in a picture, as 0xRRGGBB."""
    pixels = (imread(path)[..., :3] * 255).round().astype(int)
    return set(np.unique(pixels @ (1 << 16, 1 << 8, 1)).tolist())


def test_an_overlay_draws_each_label_in_its_own_colour(tmp_path, drawn):
    image, reference, prediction = drawn
    both, one = tmp_path / "both.png", tmp_path / "one.png"
    overlay(both, [("a", image, reference, prediction)], labels={1: "V1"})
    overlay(one, [("a", image, None, (prediction == 1).astype(np.uint8))])
    orange, blue = 0xE69F00, 0x56B4E9  # labels 1 and 2 of the palette
    assert {orange, blue} <= colours(both)
    assert orange in colours(one)
    assert blue not in colours(one)
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


def test_an_overlay_takes_many_slices_empty_masks_and_flat_images(tmp_path, drawn):
    image, reference, prediction = drawn
    path, few = tmp_path / "many.png", tmp_path / "few.png"
    empty = np.zeros_like(prediction)
    overlay(path, [(f"case {i}", image * 0, reference, empty) for i in range(6)])
    overlay(few, [("case", image, None, empty)])
    # Six panels stand in two rows of four columns, one panel stands alone.
    assert imread(path).shape[1] == 4 * imread(few).shape[1]
    assert imread(path).shape[0] > 1.5 * imread(few).shape[0]
    with pytest.raises(ValueError, match="no slice"):
        overlay(path, [])


def test_learning_curves_skip_a_half_written_last_line(tmp_path):
    log, path = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
    points = [{"step": 10, "loss": 1.0}, {"step": 20, "loss": None}, {"step": 30, "loss": 0.5}]
    points.append({"step": 30, "dice": 0.8})
    log.write_text("".join(json.dumps(point) + "\n" for point in points) + '{"step": 4')
    learning_curves(path, log)
    assert {0xE69F00, 0x56B4E9} <= colours(path)  # Dice and loss


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("", "nothing to draw"), ('{"a"\n{"step": 1, "loss": 1}\n', "line 1 is damaged")],
)
def test_a_log_without_points_is_told(tmp_path, text, wrong):
    log = tmp_path / "metrics.jsonl"
    with pytest.raises(InputError, match="no such file"):
        learning_curves(tmp_path / "curves.png", log)
    log.write_text(text)
    with pytest.raises(InputError, match=wrong):
        learning_curves(tmp_path / "curves.png", log)
    assert not (tmp_path / "curves.png").exists()
