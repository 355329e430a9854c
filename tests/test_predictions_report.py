"""``penn report`` on a folder of ``penn predict``, from files written here."""

import json

import nibabel as nib
import numpy as np
import pytest

from penn_jax.cli import main
from penn_jax.predictions import FILE, read_predictions, write_predictions
from penn_jax.types import InputError

SHAPE, SPACING = (12, 14, 5), (1.0, 2.0, 4.0)


def save(path, array, spacing=SPACING):
    nib.save(nib.Nifti1Image(array, np.diag((*spacing, 1.0))), path)
    return path


@pytest.fixture
def masks(tmp_path):
    """Scans and masks of four cases, and what ``penn predict`` would say of them."""
    (tmp_path / "masks").mkdir()
    generator, cases = np.random.default_rng(0), {}
    for number, name in enumerate("abcd"):
        scan = save(tmp_path / f"{name}.nii", generator.normal(size=SHAPE).astype(np.float32))
        mask = np.zeros(SHAPE, np.uint8)
        mask[3 : 3 + number, 4:8, 1:4] = 7
        save(tmp_path / "masks" / f"{name}.nii.gz", mask)
        sure = 0.5 + 0.1 * number if number else None
        found = {"value": 7, "volume": 96.0 * number, "components": int(number > 0)}
        cases[name] = {
            "models": ["run"],
            "engine": "jax",
            "mirror": False,
            "scan": [str(scan)],
            "confidence": sure or 0.0,
            "classes": {"tumour": found | {"confidence": sure, "expected_dice": sure}},
            "training_cases": 0,
            "warnings": [] if number else ["nothing was found"],
        }
    write_predictions(tmp_path / "masks", cases)
    return tmp_path / "masks"


def test_the_least_and_the_most_certain_are_drawn_on_their_scans(masks, capsys):
    assert main(["report", str(masks), "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(masks / "report.html")
    html = (masks / "report.html").read_text(encoding="utf-8")
    for title in ("Least certain: b", "Second least certain: c", "Most certain: d"):
        assert title in html
    # Slices along the coarsest axis; columns run from right to left, 12 voxels of 1 mm, rows from
    # head, or front, down: 14 of 2 mm.
    assert html.count('viewBox="0 0 12.0 28.0"') == 3 * 5
    # Three slices of each mask, and the line of the legend.
    assert html.count('<path class="class-1" d="M') == 3 * 3 + 1


def test_a_scan_that_is_gone_or_another_is_told_on_the_page(masks, tmp_path):
    (tmp_path / "b.nii").unlink()
    save(tmp_path / "d.nii", np.ones((3, 3, 3), np.float32))
    assert main(["report", str(masks), "--out", str(tmp_path / "page.html"), "--quiet"]) == 0
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "b.nii: is no longer there" in html
    assert "d.nii.gz: shape (12, 14, 5)" in html
    assert "Second least certain: c" in html


def test_what_cannot_be_reported(masks, tmp_path, capsys):
    def error(*arguments):
        assert main(["report", *map(str, arguments), "--quiet"]) == 2
        return capsys.readouterr().err

    assert "is no folder of penn predict" in error(tmp_path)
    assert "cannot be a page" in error(masks, "--out", tmp_path)
    content = json.loads((masks / FILE).read_text())
    content["cases"]["a"]["classes"] = {}
    (masks / FILE).write_text(json.dumps(content))
    assert "masks of different classes" in error(masks)
    (masks / FILE).write_text('{"format": 1, "cases": {}}')
    assert "tells of no mask" in error(masks)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content | {"format": 2},
        lambda content: content | {"more": 1},
        lambda content: {"format": 1, "cases": {"a": {}}},
        lambda content: {"format": 1, "cases": {"a": content["cases"]["b"] | {"confidence": 2.0}}},
    ],
)
def test_a_damaged_file_is_refused(masks, change):
    content = json.loads((masks / FILE).read_text())
    assert set(read_predictions(masks)) == set("abcd")
    (masks / FILE).write_text(json.dumps(change(content)))
    with pytest.raises(InputError, match=r"predictions\.json: is damaged"):
        read_predictions(masks)
