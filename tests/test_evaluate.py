import json
import math

import nibabel as nib
import numpy as np
import pytest

from penn_jax.evaluate import evaluate
from penn_jax.report.metrics import METRICS
from penn_jax.report.tables import six_metric_markdown
from penn_jax.types import InputError

SPACING = (1.0, 2.0, 4.0)


def write(folder, name, labels, affine=None, ending=".nii.gz"):
    folder.mkdir(exist_ok=True)
    affine = np.diag([*SPACING, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), affine), folder / f"{name}{ending}")


def box(*slices, label=1, shape=(10, 10, 6)):
    labels = np.zeros(shape, np.uint8)
    labels[slices] = label
    return labels


@pytest.fixture
def folders(tmp_path):
    """Three cases: boxes one voxel apart, a tumour missed, and no tumour at all."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    cube = (slice(2, 6), slice(2, 6), slice(1, 5))
    write(references, "apart", box(*cube))
    write(predictions, "apart", box(slice(3, 7), *cube[1:]))
    write(references, "missed", box(*cube))
    write(predictions, "missed", box(slice(0)), ending=".nii")
    write(references, "none", box(slice(0)))
    write(predictions, "none", box(slice(0)))
    return predictions, references


def test_three_cases_by_hand(folders):
    result = evaluate(*folders)
    apart, missed, none = (result["cases"][name] for name in ("apart", "missed", "none"))
    # 64 voxels each, 48 in common: Dice 0.75, IoU 48/80, accuracy 1 - 32/600.
    assert apart["dice"] == apart["precision"] == apart["recall"] == apart["f1"] == 0.75
    assert apart["iou"] == pytest.approx(0.6)
    assert apart["accuracy"] == pytest.approx(1 - 32 / 600)
    # The box moved by one voxel of 1 mm along the first axis: no surface is farther than that.
    assert apart["hd95"] == 1.0
    assert 0 < apart["mean_surface_distance"] < 1
    assert [missed[name] for name in METRICS] == [0, 0, pytest.approx(1 - 64 / 600), 0, 0, 0]
    assert missed["hd95"] is None
    assert [none[name] for name in METRICS] == [None, None, 1, None, None, None]
    # The mean leaves the undefined case out.
    # Two cases: 0.375 ± 12.7 · 0.375 by Student's t, cut at what a Dice can be.
    assert result["mean"]["dice"] == {"value": 0.375, "ci95": [0.0, 1.0], "n": 2}
    assert result["mean"]["accuracy"]["n"] == 3
    assert result["mean"]["hd95"] == {"value": 1.0, "ci95": None, "n": 1}
    # Pooled: TP 48, FP 16, FN 16 + 64.
    assert result["pooled"]["dice"] == pytest.approx(96 / (96 + 16 + 80))
    assert result["pooled"]["precision"] == pytest.approx(48 / 64)
    assert result["labels"]["1"]["pooled"] == result["pooled"]
    assert result["labels"]["1"]["mean"] == result["mean"]
    assert "undefined" in result["policy"]


def test_the_result_is_the_json_file(folders, tmp_path):
    out = tmp_path / "metrics.json"
    result = evaluate(*folders, out=out)
    assert json.loads(out.read_text()) == result
    assert list(result)[:5] == ["pooled", "pooled_ci95", "mean", "cases", "labels"]
    assert set(result["pooled"]) == set(METRICS)
    assert set(result["mean"]) == {*METRICS, "hd95", "mean_surface_distance"}
    assert "| Dice (%) | 50.0 |" in six_metric_markdown(result)


def test_several_labels_and_their_merging(tmp_path):
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    reference = box(slice(0, 4)) + box(slice(5, 9), label=3)
    prediction = box(slice(0, 4)) + box(slice(5, 9), label=2)  # found, but called 2 instead of 3
    write(references, "a", reference)
    write(predictions, "a", prediction)
    result = evaluate(predictions, references)
    assert list(result["labels"]) == ["1", "2", "3"]
    by_label = result["cases"]["a"]["labels"]
    assert [by_label[label]["dice"] for label in "123"] == [1, 0, 0]
    assert [by_label[label]["hd95"] for label in "123"] == [0, None, None]
    # By hand: 240 voxels of label 1 right, 240 called 2 that are 3.
    assert result["cases"]["a"]["dice"] == pytest.approx(1 / 3)
    assert result["pooled"]["dice"] == pytest.approx(2 * 240 / (2 * 240 + 240 + 240))
    assert result["mean"]["dice"] == {"value": pytest.approx(1 / 3), "ci95": None, "n": 1}
    merged = evaluate(predictions, references, merge_labels=True)
    assert merged["pooled"] == dict.fromkeys(METRICS, 1.0)
    assert list(merged["labels"]) == ["1"]


def test_ignored_voxels_count_neither_as_pixels_nor_as_surface(tmp_path):
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    write(references, "a", box(slice(0, 4)) + box(slice(6, 10), label=255))
    write(predictions, "a", box(slice(0, 4)) + box(slice(6, 10)))
    for merge in (False, True):
        result = evaluate(predictions, references, merge_labels=merge)
        assert result["pooled"] == dict.fromkeys(METRICS, 1.0)
        assert result["cases"]["a"]["hd95"] == 0


def test_a_single_slice_is_measured_as_a_plane(tmp_path):
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    shape = (12, 12, 1)
    write(references, "a", box(slice(2, 9), slice(2, 9), shape=shape))
    write(predictions, "a", box(slice(5, 6), slice(5, 6), shape=shape))
    # By hand: from the centre of a 7×7 square (1 × 2 mm) to its outline 3 mm, back at most
    # √(3² + 6²); as a volume the nearest «surface» voxel would be the centre itself, at 0.
    found = evaluate(predictions, references)["cases"]["a"]
    assert found["hd95"] == pytest.approx(math.sqrt(45))
    # By hand: 24 outline voxels and the centre; the square's two sides at 3 mm and two at 6 mm.
    rows = 2 * sum(math.hypot(3, 2 * j) for j in range(-3, 4))
    columns = 2 * sum(math.hypot(i, 6) for i in range(-2, 3))
    assert found["mean_surface_distance"] == pytest.approx((rows + columns + 3) / 25)


def test_only_the_named_cases_are_compared(folders):
    result = evaluate(*folders, cases=["apart"])
    assert list(result["cases"]) == ["apart"]
    assert result["left_out"] == ["missed", "none"]
    assert result["pooled"]["dice"] == 0.75
    with pytest.raises(InputError, match=r"references: no reference for 1 of 1 cases \(other\)"):
        evaluate(*folders, cases=["other"])


def test_predictions_without_a_reference_are_listed_and_do_not_count(folders):
    write(folders[0], "further", box(slice(0, 9)))
    result = evaluate(*folders)
    assert result["extra"] == ["further"]
    assert result["left_out"] == []
    assert set(result["cases"]) == {"apart", "missed", "none"}


# Mistakes


def test_a_missing_prediction_is_an_error_that_names_the_case(folders, tmp_path):
    (folders[0] / "apart.nii.gz").unlink()
    out = tmp_path / "metrics.json"
    with pytest.raises(InputError, match=r"predictions: no prediction for 1 of 3 cases \(apart\)"):
        evaluate(*folders, out=out)
    assert not out.exists()


def test_masks_of_another_size_are_refused_before_they_are_read(folders, monkeypatch):
    predictions, _ = folders
    write(predictions, "apart", box(slice(2, 6), shape=(10, 10, 5)))
    monkeypatch.setattr("penn_jax.evaluate.read_labels", lambda path: pytest.fail("was read"))
    with pytest.raises(InputError, match=r"apart.nii.gz: shape \(10, 10, 5\)"):
        evaluate(*folders)


def test_masks_on_different_grids_are_refused(folders):
    predictions, _ = folders
    write(predictions, "apart", box(slice(2, 6), shape=(10, 10, 5)))
    with pytest.raises(InputError, match=r"apart.nii.gz: .*\(10, 10, 5\).*\(10, 10, 6\)"):
        evaluate(*folders)
    moved = np.diag([*SPACING, 1.0])
    moved[0, 3] = 5.0
    write(predictions, "apart", box(slice(2, 6)), affine=moved)
    with pytest.raises(InputError, match=r"apart.nii.gz: .*affine.*5 mm"):
        evaluate(*folders)


def test_an_affine_that_differs_by_rounding_is_the_same_grid(folders):
    rounded = np.diag([*SPACING, 1.0]) + 1e-4
    rounded[3] = 0, 0, 0, 1
    write(folders[0], "none", box(slice(0)), affine=rounded)
    assert evaluate(*folders)["cases"]["none"]["accuracy"] == 1


def test_binary_masks_written_as_255_are_refused(folders):
    predictions, references = folders
    write(predictions, "apart", box(slice(2, 6), label=255))
    with pytest.raises(InputError, match=r"apart.nii.gz: predicted label 255"):
        evaluate(predictions, references)
    write(predictions, "apart", box(slice(2, 6)))
    for name in ("apart", "missed"):
        write(references, name, box(slice(2, 6), label=255))
    with pytest.raises(InputError, match=r"references: no label but 255"):
        evaluate(predictions, references)


def test_folders_that_cannot_be_meant_are_refused(folders, tmp_path):
    predictions, references = folders
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="absent: no such folder"):
        evaluate(tmp_path / "absent", references)
    with pytest.raises(InputError, match="empty: no masks"):
        evaluate(predictions, empty)
    with pytest.raises(InputError, match=r"out/metrics.json: its folder does not exist"):
        evaluate(predictions, references, out=tmp_path / "out" / "metrics.json")
    with pytest.raises(InputError, match="empty: is a folder"):
        evaluate(predictions, references, out=empty)
    with pytest.raises(InputError, match="no case was named"):
        evaluate(predictions, references, cases=[])
    write(predictions, "apart", box(slice(2, 6)), ending=".nii")
    with pytest.raises(InputError, match=r"apart.nii.gz: a second file for case apart"):
        evaluate(predictions, references)


def test_a_damaged_mask_is_named(folders):
    path = folders[0] / "apart.nii.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"apart.nii.gz"):
        evaluate(*folders)
