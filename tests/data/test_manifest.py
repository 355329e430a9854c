"""The manifest's reader: whatever was prepared is read, whatever was changed is named."""

import copy
import io
import json
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_stores import case_record, manifest_of
from rich.console import Console

from penn_jax.config import PrepareConfig
from penn_jax.data.findings import summary
from penn_jax.data.manifest import read_manifest
from penn_jax.data.prepare import prepare
from penn_jax.data.volume import write_image
from penn_jax.types import InputError

LABELS = np.arange(2 * 6 * 5).reshape(2, 6, 5) % 4


def sound():
    """Two labelled cases, one of them for testing, and an unlabelled one."""
    records = {name: case_record((2, 6, 5, 1), LABELS) for name in ("a", "b c", "t")}
    records["t"]["part"] = "test"
    records["脊椎"] = case_record((2, 6, 5, 1))
    splits = [{"train": ["a"], "validation": ["b c"]}]
    return manifest_of(records, splits=splits)


def refusal(content, said="is damaged"):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(InputError) as caught:
        read_manifest(content, "store/manifest.json")
    assert str(caught.value).startswith(f"store/manifest.json: {said}")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_sound_manifest_comes_back_as_json_has_it():
    manifest = sound()
    assert read_manifest(json.dumps(manifest).encode(), "x") == manifest


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("spacing", ["median", "native"])
def test_what_prepare_writes_is_accepted(dimensions, spacing, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "raw/images").mkdir(parents=True)
    (tmp_path / "raw/labels").mkdir()
    for name in ("a", "b", "unlabelled"):
        affine = np.diag([1.0, 1.5, 4.0, 1.0])
        scan = rng.integers(0, 99, (6, 5, 4)).astype(np.int16)
        write_image(tmp_path / f"raw/images/{name}.nii.gz", scan, affine)
        if name != "unlabelled":
            mask = (scan % 2 * 7).astype(np.uint8)
            write_image(tmp_path / f"raw/labels/{name}.nii.gz", mask, affine)
    options = PrepareConfig(dimensions=dimensions, spacing=spacing)
    content = (
        prepare(tmp_path / "raw", tmp_path / "out", options, 1) / "manifest.json"
    ).read_bytes()
    manifest = read_manifest(content, "x")
    assert manifest == json.loads(content)
    assert manifest["label_values"] == [0, 7]


def changed(path, value):
    """The sound manifest with one place replaced; ``...`` takes the key out."""
    manifest = copy.deepcopy(sound())
    parent = manifest
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return manifest


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # Types, ranges and unknown keys: the place is named.
        (["cases", "a", "labelled"], 1, "cases.a.labelled: Input should be a valid boolean"),
        (["cases", "a", "slice_axis"], True, "cases.a.slice_axis"),
        (["cases", "a", "slice_axis"], 3, "cases.a.slice_axis"),
        (["cases", "a", "frames_shape"], [2, 6, 5], "cases.a.frames_shape"),
        (["cases", "a", "frames_shape", 0], 0, "cases.a.frames_shape.0"),
        (["cases", "a", "frames_shape", 0], 2.0, "cases.a.frames_shape.0"),
        (["cases", "a", "frames_shape", 0], 10**30, "cases.a.frames_shape.0"),
        (["cases", "a", "native_spacing", 1], 0.0, "cases.a.native_spacing.1"),
        (["cases", "a", "native_spacing", 1], float("inf"), "finite"),
        (["cases", "a", "affine", 3, 3], float("nan"), "cases.a.affine.3.3: .*finite"),
        (["cases", "a", "affine", 3, 3], 10**400, "cases.a.affine.3.3: .*finite"),
        (["cases", "a", "affine"], [[0.0] * 4] * 3, "cases.a.affine"),
        (["cases", "a", "fingerprint"], "0" * 63, "cases.a.fingerprint"),
        (["cases", "a", "intensity", "mean"], [0.0], "cases.a.intensity.mean"),
        (["cases", "a", "subject"], ..., "cases.a.subject: Field required"),
        (["cases", "a", "odd\nkey"], 1, r"cases.a.odd\\nkey"),
        (["cases", "a", "voxels", "0"], -1, "cases.a.voxels.0"),
        (["cases"], {}, "cases"),
        (["labels", "background"], "0", "labels.background"),
        (["label_values"], [0, 1, 2, 256], "label_values.3"),
        (["spacing", 0], -1.0, "spacing.0"),
        (["dimensions"], 4, "dimensions"),
        (["format"], 2.0, "format"),
        (["format"], ..., "format: Field required"),
        (["data_hash"], "", "data_hash"),
        (["findings"], "none", "findings"),
        (["surprise"], 1, "surprise"),
        (["config", "surprise"], 1, "config: are not options of penn prepare"),
        (["config", "validation_fraction"], 2.0, "config: are not options of penn prepare"),
        # Names that leave the store's folder.
        *((["cases", name], {}, "cannot name a case") for name in ("", ".", "..", "../a", "a\\b")),
        # Parts that contradict one another.
        (["channels"], ["T1", "T2"], "cases.a.frames_shape: not F, 2 axes and 2 channels"),
        (["labels", "label 3"], 5, r"labels: the classes are \[0, 1, 2, 5\], not 0 to 3"),
        (["labels", "more"], 2, r"labels: the classes are \[0, 1, 2, 2, 3\]"),
        (["label_values"], [0, 1, 2], "label_values"),
        (["label_values"], [0, 1, 2, 2], "label_values"),
        (["label_values"], [1, 0, 2, 3], "label_values"),
        (["dimensions"], 3, "dimensions: 3 is not what config says"),
        (["spacing"], [1.0], "spacing: not 2 values"),
        (["splits", 0, "train"], ["a", "nobody"], "splits.0: nobody is not among the cases"),
        (["splits", 0, "train"], ["a", "t"], "splits.0: t is for testing"),
        (["splits", 0, "train"], ["a", "b c"], "splits.0: a case is there twice"),
        (["splits"], [], "splits"),
        (["cases", "a", "frames_shape"], [3, 6, 5, 1], "3 frames of a scan of"),
        (["cases", "a", "slice_axis"], None, "slice_axis: None in a 2-D store"),
        (["cases", "a", "orientation"], "RLS", "orientation: two axes point the same way"),
        (["cases", "a", "intensity", "median"], [], "intensity.median: not a value for each"),
        (["cases", "a", "voxels", "0"], 16, "voxels: the counts do not add up"),
        (["cases", "a", "voxels"], {"0": 60}, "voxels: not a count for each class"),
        (["cases", "a", "voxels", "7"], 0, "voxels: not a count for each class"),
        (["cases", "脊椎", "voxels"], {"0": 60}, "脊椎.voxels: counts of an unlabelled case"),
    ],
)
def test_a_change_is_refused_and_its_place_named(path, value, message):
    assert re.search(message, refusal(changed(path, value)))


def test_ignored_voxels_have_a_count_of_their_own():
    labels = LABELS.copy()
    labels[0, 0] = 255
    records = {"a": case_record((2, 6, 5, 1), labels)}
    manifest = read_manifest(json.dumps(manifest_of(records)).encode(), "x")
    assert manifest["cases"]["a"]["voxels"]["255"] == 5  # one row of five


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"format": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000,
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"format": 2',
        b'{"format": 2, "cases": {"\\ud800": {}}}',
        json.dumps(sound()).encode("utf-16"),
    ],
    ids=lambda content: repr(content[:20]),
)
def test_bytes_that_are_no_manifest_are_refused(content):
    refusal(content)


@pytest.mark.parametrize("version", [0, 1, 3, 10**100, -1.5, "one\ntwo", None, {}, float("inf")])
def test_another_format_is_told_before_anything_else(version):
    assert "run penn prepare" in refusal(changed(["format"], version), "is of format")


def test_of_a_key_given_twice_the_last_counts():
    # As in Python's json; what matters is that one value is checked, and that one is used.
    text = json.dumps(sound())
    assert read_manifest(text.replace('"format": 2', '"format": 3, "format": 2').encode(), "x")
    refusal(text.replace('"format": 2', '"format": 2, "format": 3').encode(), "is of format 3")


@pytest.mark.parametrize("name", ["[/b]", "[red]T1", "[link=x]"])
def test_names_that_look_like_markup_are_shown_as_they_are(name):
    labels = {"labels": {"background": 0, name: 1}, "label_values": [0, 1]}
    records = {"a": case_record((2, 6, 5, 1))}
    content = json.dumps(manifest_of(records, channels=[name], **labels)).encode()
    output = io.StringIO()
    Console(file=output, width=200).print(summary(read_manifest(content, "x")))
    assert output.getvalue().count(name) == 3  # the channel, its intensities, the class


def paths(value, path=()):
    """Every place in a JSON value."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else ():
        yield from paths(part, (*path, key))
    for key, part in enumerate(value) if isinstance(value, list) else ():
        yield from paths(part, (*path, key))


@given(data=st.data())
def test_no_key_can_be_missing(data):
    # An item of a list of names may go; the key of an object never.
    keys = [path for path in paths(sound()) if path and isinstance(path[-1], str)]
    free = ("config", "cases")  # options have defaults, and any case but those of a split may go
    keys = [path for path in keys if path[:-1] not in {(name,) for name in free}]
    refusal(changed(data.draw(st.sampled_from(keys)), ...))


def test_ten_thousand_cases_are_read_in_two_seconds():
    record = case_record((2, 6, 5, 1), LABELS)
    records = {f"case {number:05}": record for number in range(10_000)}
    content = json.dumps(manifest_of(records), indent=1).encode()
    start = time.process_time()
    assert len(read_manifest(content, "x")["cases"]) == 10_000
    assert time.process_time() - start < 2  # 0.4 s measured
