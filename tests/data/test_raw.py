import json
from pathlib import Path

import pytest

from penn_jax.data.raw import Split, find_cases
from penn_jax.types import InputError


def touch(root: Path, *names: str) -> None:
    """Empty files: finding cases reads no voxel."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def describe(root: Path, **changes) -> None:
    content = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "tumour": 1},
        "file_ending": ".nii.gz",
        "numTraining": 2,  # nnU-Net's own keys, of no use here
        "reference": "somebody",
    }
    (root / "dataset.json").write_text(json.dumps(content | changes))


@pytest.fixture
def nnunet(tmp_path: Path) -> Path:
    for name in ("b", "a"):
        touch(tmp_path, f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz")
    describe(tmp_path)
    return tmp_path


def refused(root: Path, message: str) -> None:
    with pytest.raises(InputError) as caught:
        find_cases(root)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nnunet(nnunet):
    touch(nnunet, "imagesTs/c_0000.nii.gz", "imagesTr/.hidden.nii.gz", "imagesTr/notes.txt")
    found = find_cases(nnunet)
    assert found.layout == "nnunet"
    assert found.channels == ("T1",)
    assert found.labels == {"background": 0, "tumour": 1}
    assert found.ignore is None
    assert found.splits is None
    assert [(c.name, c.subject, c.part) for c in found.cases] == [
        ("a", "a", "train"),
        ("b", "b", "train"),
        ("c", "c", "test"),
    ]
    assert found.cases[0].images == (nnunet / "imagesTr/a_0000.nii.gz",)
    assert found.cases[0].label == nnunet / "labelsTr/a.nii.gz"
    assert found.cases[2].label is None


def test_nnunet_channels_are_in_order_and_complete(nnunet):
    describe(nnunet, channel_names={"1": "T2", "0": "T1"})
    refused(nnunet, "a_*.nii.gz: channels 0000, expected 2 from 0000 as in dataset.json")
    touch(nnunet, "imagesTr/a_0001.nii.gz", "imagesTr/b_0001.nii.gz")
    found = find_cases(nnunet)
    assert found.channels == ("T1", "T2")
    assert [path.name for path in found.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    touch(nnunet, "imagesTr/b_0002.nii.gz")
    refused(nnunet, "b_*.nii.gz: channels 0000, 0001, 0002")


def test_nnunet_ignore_label_is_kept_apart(nnunet):
    describe(nnunet, labels={"background": 0, "ignore": 2, "tumour": 1})
    found = find_cases(nnunet)
    assert found.labels == {"background": 0, "tumour": 1}
    assert found.ignore == 2


def test_nnunet_labels_of_test_cases_are_taken_where_they_are(nnunet):
    touch(nnunet, "imagesTs/c_0000.nii.gz", "labelsTs/c.nii.gz")
    assert find_cases(nnunet).cases[2].label == nnunet / "labelsTs/c.nii.gz"


def test_nnunet_uncompressed(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii", "labelsTr/a.nii")
    describe(tmp_path, file_ending=".nii")
    assert find_cases(tmp_path).cases[0].label == tmp_path / "labelsTr/a.nii"
    describe(tmp_path)
    refused(tmp_path, "a_0000.nii: name without a channel, expected <case>_0000.nii.gz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, "label 'whole' is a region [1, 2]"),
        ({"labels": {"0": "background", "1": "tumour"}}, "labels.0"),
        ({"labels": {"background": 1, "tumour": 0}}, "background is not 0"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "two labels share a value"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "two labels share a value"),
        ({"labels": {"background": 0, "a": 256}}, "outside 0 to 255"),
        ({"labels": {"background": 0, "a": -1}}, "outside 0 to 255"),
        ({"labels": {"background": 0}}, "no label but background"),
        ({"labels": {"background": 0, "a": 1.5}}, "labels.a"),
        ({"channel_names": {"1": "T1"}}, "channel_names has the keys 1"),
        ({"channel_names": {}}, "channel_names has the keys none"),
        ({"file_ending": ".mha"}, "file_ending"),
    ],
)
def test_wrong_dataset_json(nnunet, changes, message):
    describe(nnunet, **changes)
    refused(nnunet, message)
    refused(nnunet, "dataset.json: ")


def test_dataset_json_that_lacks_a_key_or_is_no_json(nnunet):
    (nnunet / "dataset.json").write_text('{"labels": {"background": 0, "a": 1}}')
    refused(nnunet, "channel_names: Field required")
    (nnunet / "dataset.json").write_text("{")
    refused(nnunet, "Invalid JSON")


def test_nnunet_files_that_do_not_fit(nnunet):
    touch(nnunet, "labelsTr/d.nii.gz")
    refused(nnunet, "labelsTr/d.nii.gz: a label without its image")
    (nnunet / "labelsTr/d.nii.gz").unlink()
    touch(nnunet, "imagesTr/e.nii.gz")
    refused(nnunet, "e.nii.gz: name without a channel")
    (nnunet / "imagesTr/e.nii.gz").unlink()
    touch(nnunet, "imagesTs/a_0000.nii.gz")
    refused(nnunet, "a is there twice")
    (nnunet / "imagesTs/a_0000.nii.gz").unlink()
    (nnunet / "labelsTr/a.nii.gz").unlink()
    refused(nnunet, "labelsTr/a.nii.gz: no such file, expected a label for each case of imagesTr")


def test_splits(nnunet):
    splits = [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]
    (nnunet / "splits_final.json").write_text(json.dumps(splits))
    assert find_cases(nnunet).splits == (Split(("a",), ("b",)), Split(("b",), ("a",)))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([{"train": ["a", "x"], "val": ["b"]}], "x is not a labelled training case (1 such)"),
        ([{"train": ["a", "c"], "val": ["b"]}], "c is not a labelled training case (1 such)"),
        ([{"train": ["a", "b"], "val": ["b"]}], "b is in a split twice"),
        ([{"train": [], "val": ["b"]}], "a split trains on nothing"),
        ([], "no split"),
        ([{"train": ["a"]}], "0.val: Field required"),
        ({"train": ["a"], "val": ["b"]}, "should be a valid array"),
    ],
)
def test_wrong_splits(nnunet, splits, message):
    touch(nnunet, "imagesTs/c_0000.nii.gz")
    (nnunet / "splits_final.json").write_text(json.dumps(splits))
    refused(nnunet, message)
    refused(nnunet, "splits_final.json: ")


def test_bids(tmp_path):
    touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
        "sub-03/anat/sub-03_T1w.nii",
        "derivatives/labels/sub-01/anat/sub-01_T1w_seg-manual_mask.nii.gz",
        "derivatives/labels/sub-02/ses-a/anat/sub-02_ses-a_T1w_dseg.nii.gz",
        "derivatives/labels/sub-02/ses-b/anat/sub-02_ses-b_desc-x_dseg.nii.gz",
    )
    found = find_cases(tmp_path)
    assert found.layout == "bids"
    assert found.channels == ("T1w",)
    assert found.labels == {}
    labels = {c.name: c.label and c.label.name for c in found.cases}
    assert labels == {
        "sub-01": "sub-01_T1w_seg-manual_mask.nii.gz",
        "sub-02_ses-a": "sub-02_ses-a_T1w_dseg.nii.gz",
        "sub-02_ses-b": "sub-02_ses-b_desc-x_dseg.nii.gz",
        "sub-03": None,
    }
    assert [c.subject for c in found.cases] == ["sub-01", "sub-02", "sub-02", "sub-03"]


def test_bids_suffixes_are_channels_if_all_have_them(tmp_path):
    touch(
        tmp_path,
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz",
        "derivatives/labels/sub-01/anat/sub-01_T2w_seg.nii.gz",
        "derivatives/labels/sub-02/anat/sub-02_label-tumour_mask.nii.gz",
    )
    found = find_cases(tmp_path)
    assert found.channels == ("T1w", "T2w")
    assert [path.name for path in found.cases[1].images] == [
        "sub-02_T1w.nii.gz",
        "sub-02_T2w.nii.gz",
    ]
    assert all(case.label for case in found.cases)
    (tmp_path / "sub-02/anat/sub-02_T2w.nii.gz").unlink()
    refused(tmp_path, "sub-02: no T2w image, expected T1w, T2w for each case")


def test_bids_files_that_do_not_fit(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz")
    # A label of a session must not fall to the case without one, whose name begins alike.
    touch(tmp_path, "derivatives/labels/sub-1/ses-3/anat/sub-1_ses-3_T1w_seg.nii.gz")
    refused(tmp_path, "sub-1_ses-3_T1w_seg.nii.gz: no image of this name")
    (tmp_path / "derivatives/labels/sub-1/ses-3/anat/sub-1_ses-3_T1w_seg.nii.gz").unlink()
    touch(tmp_path, "derivatives/labels/sub-1/anat/sub-1_T1w_seg.nii.gz")
    touch(tmp_path, "derivatives/labels/sub-1/anat/sub-1_dseg.nii.gz")
    refused(tmp_path, "a second label beside")
    (tmp_path / "derivatives/labels/sub-1/anat/sub-1_dseg.nii.gz").unlink()
    touch(tmp_path, "sub-1/anat/scan.nii.gz")
    refused(tmp_path, "scan.nii.gz: not a BIDS name")
    (tmp_path / "sub-1/anat/scan.nii.gz").unlink()
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii")
    refused(tmp_path, "the image is there twice")


def test_plain(tmp_path):
    touch(tmp_path, "images/x.nii.gz", "images/sub-7_a.nii", "labels/x.nii.gz")
    found = find_cases(tmp_path)
    assert found.layout == "plain"
    assert [(c.name, c.subject) for c in found.cases] == [("sub-7_a", "sub-7"), ("x", "x")]
    assert [c.label for c in found.cases] == [None, tmp_path / "labels/x.nii.gz"]
    touch(tmp_path, "labels/y.nii.gz")
    refused(tmp_path, "labels/y.nii.gz: a label without its image")
    (tmp_path / "labels/y.nii.gz").unlink()
    touch(tmp_path, "images/x.nii")
    refused(tmp_path, "x is there twice")


def test_folders_that_hold_nothing(tmp_path):
    refused(tmp_path / "none", "no such folder")
    refused(tmp_path, "no known layout")
    (tmp_path / "images").mkdir()
    refused(tmp_path, "no case")


def test_links_inside_of_the_folder_are_followed(nnunet):
    (nnunet / "pool").mkdir()
    (nnunet / "imagesTr/a_0000.nii.gz").rename(nnunet / "pool/x")
    (nnunet / "imagesTr/a_0000.nii.gz").symlink_to("../pool/x")
    assert find_cases(nnunet).cases[0].images == (nnunet / "imagesTr/a_0000.nii.gz",)
    linked = nnunet.with_name("linked")
    linked.symlink_to(nnunet)  # the folder itself may be one
    assert len(find_cases(linked).cases) == 2


@pytest.mark.parametrize("name", ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "dataset.json"])
def test_links_out_of_the_folder_are_refused(nnunet, tmp_path_factory, name):
    target = tmp_path_factory.mktemp("elsewhere") / "file"
    (nnunet / name).rename(target)
    (nnunet / name).symlink_to(target)
    refused(nnunet, f"{nnunet / name}: a link to {target}, expected a file inside of {nnunet}")
    refused(nnunet, "copy the file, or give the folder that holds both")


def test_a_folder_that_is_a_link_out_is_refused(nnunet, tmp_path_factory):
    target = tmp_path_factory.mktemp("elsewhere") / "scans"
    (nnunet / "imagesTr").rename(target)
    (nnunet / "imagesTr").symlink_to(target)
    refused(nnunet, f"imagesTr/a_0000.nii.gz: a link to {target / 'a_0000.nii.gz'}")


@pytest.mark.parametrize(
    ("mark", "shown"), [("\n", r"\n"), ("\x1b", r"\x1b"), ("\udcff", r"\udcff")]
)
def test_names_that_cannot_be_shown_are_refused_in_one_line(nnunet, mark, shown):
    touch(nnunet, f"imagesTr/a{mark}b_0000.nii.gz")
    refused(nnunet, f"a{shown}b_0000.nii.gz: control characters or broken UTF-8 in its name")


def test_unicode_and_spaces_are_names(nnunet):
    touch(nnunet, "imagesTs/Ж é 病人_0000.nii.gz")
    assert "Ж é 病人" in [case.name for case in find_cases(nnunet).cases]


def test_what_is_there_but_cannot_be_read_is_not_passed_over(nnunet):
    (nnunet / "splits_final.json").symlink_to("nowhere")
    refused(nnunet, "splits_final.json: is not a file")
    (nnunet / "splits_final.json").unlink()
    (nnunet / "imagesTs").touch()
    refused(nnunet, "imagesTs: is not a folder")
    (nnunet / "imagesTs").unlink()
    touch(nnunet, "imagesTs/c_0000.NII.GZ")
    refused(nnunet, "c_0000.NII.GZ: not a NIfTI name, expected .nii.gz or .nii; rename it")
