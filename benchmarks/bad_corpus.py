"""The corpus of ``bad_inputs.py``: what is given to the commands, and what they are to say."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bad_files import (
    AFFINE,
    BAD_SCANS,
    SCANS,
    SHAPE,
    BadScan,
    image,
    label,
    label_bomb,
    labels_of,
    link_out,
    link_to,
    nifti,
    nifti_with,
    put,
    write,
)

from penn_jax.config import Config, ModelConfig, PatchConfig, TrainConfig, to_json, write_json
from penn_jax.data.phantom import write_dataset

CONFIG = Config(
    name="tiny",
    patches=PatchConfig(size=(16, 16)),
    model=ModelConfig(channels=(8, 16), blocks=1),
    train=TrainConfig(batch_size=8, max_steps=2, checkpoint_every=0, log_every=1),
)


class Given(NamedTuple):
    """What is right, made once."""

    raw: Path
    store: Path
    run: Path
    config: Path


class Entry(NamedTuple):
    """One bad input."""

    name: str
    build: Callable[[Path, Given], Sequence[object]]
    """Makes it in an empty folder and returns the command line."""
    said: str
    """Regular expression found in the error, or in the output where the code is 0."""
    code: int = 2
    leaves: str = "nothing"
    """What the command may leave, besides what was there."""


def make_given(folder: Path, penn: Callable[..., None]) -> Given:
    """A small data set, its store, and a run of two steps.

    Args:
        folder: empty.
        penn: runs one command.
    """
    given = Given(folder / "raw", folder / "store", folder / "run", folder / "config.json")
    write_dataset(given.raw, 3, seed=0, test_cases=1, shape=(40, 36, 4), spacing=(5.0, 5.0, 9.0))
    write_json(given.config, to_json(CONFIG))
    penn("prepare", given.raw, given.store, "--workers", 1)
    penn("train", given.config, "--data", given.store, "--out", given.run)
    return given


# ---- raw folders -------------------------------------------------------------------------------


def plain(folder: Path, cases: str = "abc") -> Path:
    """``images/`` and ``labels/`` of good cases."""
    for seed, name in enumerate(cases):
        put(folder / "raw" / "images" / f"{name}.nii.gz", nifti(image(seed)))
        put(folder / "raw" / "labels" / f"{name}.nii.gz", nifti(label()))
    return folder / "raw"


def nnunet(folder: Path, description: Any = None, splits: Any = None, **changes: Any) -> Path:
    """nnU-Net raw of two good cases; JSON as given: text, bytes, or what becomes JSON."""
    raw = folder / "raw"
    for seed, name in enumerate("abc"):
        put(raw / "imagesTr" / f"{name}_0000.nii.gz", nifti(image(seed)))
        put(raw / "labelsTr" / f"{name}.nii.gz", nifti(label()))
    right = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "tumour": 1},
        "file_ending": ".nii.gz",
    }
    write(raw / "dataset.json", {**right, **changes} if description is None else description)
    if splits is not None:
        write(raw / "splits_final.json", splits)
    return raw


DEEP = "[" * 200_000
DEEP_OBJECT = '{"a":' * 200_000


def prepared(raw: Path, *options: object) -> list[object]:
    return ["prepare", raw, raw.parent / "out", *options]


def with_scan(scan: BadScan) -> Entry:
    """A raw folder with one bad image."""

    def build(folder: Path, given: Given) -> list[object]:
        raw = plain(folder)
        (raw / "images" / "b.nii.gz").unlink()
        scan.make(raw / "images" / f"b{scan.ending}")
        return prepared(raw)

    return Entry(f"prepare: image: {scan.name}", build, f"images/b{scan.ending}.*{scan.said}")


def with_label(name: str, make: Callable[[Path], object] | None, said: str, code: int = 2) -> Entry:
    """nnU-Net raw with one bad label."""

    def build(folder: Path, given: Given) -> list[object]:
        raw = nnunet(folder)
        path = raw / "labelsTr" / "b.nii.gz"
        path.unlink()
        if make is not None:
            make(path)
        return prepared(raw)

    where = r"labelsTr/b\.nii\.gz.*" if code else ""
    return Entry(f"prepare: label: {name}", build, where + said, code)


moved = AFFINE.copy()
moved[2, 3] = 40

LABELS = (
    with_label("missing", None, "no such file, expected a label for each case"),
    with_label("other shape", nifti_with(label(shape=(12, 14, 5))), r"shape \(12, 14, 5\)"),
    with_label("other affine", nifti_with(label(), affine=moved), "puts a corner 40 mm off"),
    with_label("NaN", labels_of(np.nan), "label nan is not a whole number"),
    with_label("infinite", labels_of(np.inf), "labels run from 0 to inf"),
    with_label("fraction", labels_of(0.5), "label 0.5 is not a whole number"),
    with_label("negative", labels_of(-1), "labels run from -1 to 0"),
    with_label("256", labels_of(256), "labels run from 0 to 256"),
    with_label("unknown value", labels_of(3), "unknown label values 3"),
    with_label("RGB", SCANS["RGB"].make, "are RGB"),
    with_label("truncated", SCANS["truncated gzip"].make, "cannot be read"),
    with_label("bomb", label_bomb, r"shape \(1000, 1000, 510\)"),
    with_label("pipe", os.mkfifo, "a pipe or device"),
    with_label("link out of the folder", link_out, "a link to .*elsewhere"),
    with_label("empty foreground", nifti_with(label(0)), r"no foreground: b\b", 0),
)


def of_raw(name: str, said: str, code: int = 2, **content: Any) -> Entry:
    """nnU-Net raw with other JSON files."""
    return Entry(f"prepare: {name}", lambda f, _: prepared(nnunet(f, **content)), said, code)


def of_folder(
    name: str, change: Callable[[Path], object], said: str, code: int = 2, layout=nnunet
) -> Entry:
    """A raw folder in which something was changed."""

    def build(folder: Path, given: Given) -> list[object]:
        raw = layout(folder)
        change(raw)
        return prepared(raw)

    return Entry(f"prepare: {name}", build, said, code)


def as_link(path: Path) -> None:
    """Move a file out of the raw folder and leave a link to it."""
    there = path.parents[1] / f"moved {path.name}"
    path.rename(there)
    path.symlink_to(there)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def rename(raw: Path, old: str, new: str | bytes) -> None:
    new = new if isinstance(new, str) else os.fsdecode(new)
    (raw / old).rename((raw / old).with_name(new))


def rename_case(raw: Path, new: str) -> None:
    rename(raw, "imagesTr/b_0000.nii.gz", f"{new}_0000.nii.gz")
    rename(raw, "labelsTr/b.nii.gz", f"{new}.nii.gz")


def split(train: Any, val: Any) -> Any:
    return [{"train": train, "val": val}]


FOLDERS = (
    of_raw("dataset.json broken", "dataset.json: .*JSON", description='{"labels": '),
    of_raw("dataset.json empty", "dataset.json: .*JSON", description=""),
    of_raw("dataset.json not UTF-8", "dataset.json: ", description=b'{"\xff\xfe": 1}'),
    of_raw("dataset.json an array", "dataset.json: .*an object", description=[1, 2]),
    of_raw("dataset.json deep", "dataset.json: .*recursion", description=DEEP),
    of_raw("dataset.json deep objects", "dataset.json: ", description=DEEP_OBJECT),
    of_raw(
        "dataset.json lacks labels", "labels: Field required", description={"channel_names": {}}
    ),
    of_raw("channel_names a list", "channel_names: .*an object", channel_names=["T1"]),
    of_raw("channel_names with a gap", "has the keys 1,", channel_names={"1": "T1"}),
    of_raw("label a text", "labels.tumour", labels={"background": 0, "tumour": "1"}),
    of_raw("escape in a label", "labels.", labels={"background": 0, "\x1b[2Jx": "1"}),
    of_raw("label a fraction", "labels.tumour", labels={"background": 0, "tumour": 1.5}),
    of_raw("label a region", "is a region", labels={"background": 0, "tumour": [1, 2]}),
    of_raw("label 256", "outside 0 to 255", labels={"background": 0, "tumour": 256}),
    of_raw("labels shared", "share a value", labels={"background": 0, "a": 1, "b": 1}),
    of_raw("background not 0", "background is not 0", labels={"background": 1, "tumour": 0}),
    of_raw("no label", "no label but background", labels={"background": 0}),
    of_raw("file_ending", "file_ending", file_ending=".mha"),
    of_raw("splits broken", "splits_final.json: .*JSON", splits="[{"),
    of_raw("splits empty", "splits_final.json: .*JSON", splits=""),
    of_raw("splits deep", "splits_final.json: ", splits=DEEP),
    of_raw("splits an object", "valid array", splits={"train": ["a"], "val": ["b"]}),
    of_raw("no split", "splits_final.json: no split", splits=[]),
    of_raw("split of numbers", "valid string", splits=split([1], [2])),
    of_raw("split of a missing case", "x is not a labelled", splits=split(["a", "x"], ["b"])),
    of_raw("case on both sides", "b is in a split twice", splits=split(["a", "b"], ["b"])),
    of_raw("split trains on nothing", "trains on nothing", splits=split([], ["a"])),
    of_folder(
        "dataset.json a folder", lambda r: as_folder(r / "dataset.json"), "dataset.json: is not a"
    ),
    of_folder("dataset.json a link", lambda r: as_link(r / "dataset.json"), "dataset.json: a link"),
    of_folder(
        "splits a link to nothing",
        lambda r: (r / "splits_final.json").symlink_to("nowhere.json"),
        "splits_final.json: is not a file",
    ),
    of_folder(
        "splits a pipe",
        lambda r: os.mkfifo(r / "splits_final.json"),
        "splits_final.json: is not a file",
    ),
    of_folder(
        "channel missing",
        lambda r: put(r / "imagesTr" / "a_0001.nii.gz", nifti(image(5))),
        "channels 0000, 0001, expected 1",
    ),
    of_folder(
        "orphan label",
        lambda r: put(r / "labelsTr" / "d.nii.gz", nifti(label())),
        "labelsTr/d.nii.gz: a label without its image",
    ),
    of_folder(
        "no channel in a name",
        lambda r: rename(r, "imagesTr/b_0000.nii.gz", "b.nii.gz"),
        "b.nii.gz: name without a channel",
    ),
    of_folder(
        "other ending",
        lambda r: put(r / "imagesTr" / "d_0000.nii", nifti(image(5))),
        "d_0000.nii: name without a channel",
    ),
    of_folder(
        "ending in capitals",
        lambda r: rename(r, "imagesTr/b_0000.nii.gz", "b_0000.NII.GZ"),
        "b_0000.NII.GZ: not a NIfTI name.*rename it",
    ),
    of_folder(
        "training case in imagesTs",
        lambda r: put(r / "imagesTs" / "a_0000.nii.gz", nifti(image(5))),
        "a is there twice",
    ),
    of_folder("imagesTs a file", lambda r: write(r / "imagesTs", "?"), "imagesTs: is not a folder"),
    of_folder(
        "two files of one case",
        lambda r: put(r / "images" / "a.nii", nifti(image(5))),
        "images/a.nii.gz?: a is there twice",
        layout=plain,
    ),
    of_folder("new line in a name", lambda r: rename_case(r, "b\nc"), r"b\\nc_0000.*control char"),
    of_folder("escape in a name", lambda r: rename_case(r, "b\x1b[2J"), r"b\\x1b\[2J.*control"),
    of_folder(
        "name not UTF-8",
        lambda r: rename_case(r, os.fsdecode(b"b\xff")),
        r"b\\udcff_0000.*broken UTF-8",
    ),
    of_folder("no image", lambda r: shutil.rmtree(r / "imagesTr"), "a label without its image"),
    of_folder("nothing in images", shutil.rmtree, "no such folder"),
    of_folder(
        "no case",
        lambda r: [shutil.rmtree(r / name) for name in ("imagesTr", "labelsTr")],
        "raw: no case",
    ),
    of_folder(
        "unlabelled plain images", lambda r: shutil.rmtree(r / "labels"), "no case is lab", 0, plain
    ),
    of_folder("unicode and spaces", lambda r: rename_case(r, "Ж é 病人 7"), "3 of 3 subjects", 0),
)


def options(name: str, words: Sequence[object], said: str) -> Entry:
    return Entry(f"prepare: {name}", lambda f, _: prepared(plain(f), *words), said)


def raw_given(name: str, make: Callable[[Path], object], said: str) -> Entry:
    def build(folder: Path, given: Given) -> list[object]:
        make(folder / "raw")
        return prepared(folder / "raw")

    return Entry(f"prepare: {name}", build, said)


def out_given(name: str, out: Callable[[Path, Given], object], said: str) -> Entry:
    return Entry(f"prepare: {name}", lambda f, g: ["prepare", plain(f), out(f, g)], said)


def other_store(folder: Path, given: Given) -> Path:
    return Path(shutil.copytree(given.store, folder / "store"))


PREPARE = (
    *map(with_scan, BAD_SCANS),
    *LABELS,
    *FOLDERS,
    options("spacing of words", ["--spacing", "coarse"], "--spacing: coarse"),
    options("spacing 0", ["--spacing", 0, 0], "--spacing: 0 0"),
    options("spacing NaN", ["--spacing", "nan", "nan"], "spacing"),
    options("spacing of a nanometre", ["--spacing", 1e-6, 1e-6], "GiB of frames of 1e-06 × 1e-06"),
    options("spacing of three axes", ["--spacing", 1, 1, 1], "spacing: 3 values, expected 2"),
    options("four dimensions", ["--dimensions", 4], "--dimensions: invalid choice"),
    options("validation fraction", ["--validation-fraction", 0.9], "validation_fraction = 0.9"),
    options("seed", ["--seed", -1], "seed = -1"),
    options("unknown option", ["--fast"], "unknown option --fast"),
    raw_given("no folder", lambda p: None, "raw: no such folder"),
    raw_given("a file", Path.touch, "raw: no such folder"),
    raw_given("loop of links", lambda p: p.symlink_to(p.name), "raw: no such folder"),
    raw_given("an empty folder", Path.mkdir, "raw: no known layout"),
    out_given("out a file", lambda f, _: write(f / "out", "?"), "out: is a file"),
    out_given("out another folder", lambda f, _: plain(f / "other"), "not a prepared store"),
    out_given("out another store", other_store, "a store prepared from other scans"),
    out_given("out below a file", lambda f, _: write(f / "file", "?") / "out", "file"),
    out_given("out where none can write", lambda f, _: "/proc/penn/out", "/proc/penn"),
    out_given("out in the raw folder", lambda f, _: f / "raw" / "images" / "a.nii.gz", "is a file"),
)


# ---- predict -----------------------------------------------------------------------------------


def predicted(scans: object, folder: Path, given: Given, *more: object) -> list[object]:
    return ["predict", given.run, scans, "--out", folder / "out", *more]


def of_scan(scan: BadScan) -> Entry:
    """One bad scan, given as a file."""

    def build(folder: Path, given: Given) -> list[object]:
        path = folder / "in" / f"b{scan.ending}"
        path.parent.mkdir()
        scan.make(path)
        return predicted(path, folder, given)

    return Entry(f"predict: {scan.name}", build, f"in/b{scan.ending}.*{scan.said}")


def of_scans(name: str, make: Callable[[Path], object], said: str, code: int = 2) -> Entry:
    """A folder of scans."""

    def build(folder: Path, given: Given) -> list[object]:
        (folder / "in").mkdir()
        make(folder / "in")
        return predicted(folder / "in", folder, given)

    return Entry(f"predict: {name}", build, said, code)


def of_run(name: str, change: Callable[[Path], object], said: str) -> Entry:
    """A run in which something was changed, and a good scan."""

    def build(folder: Path, given: Given) -> list[object]:
        run = Path(shutil.copytree(given.run, folder / "run"))
        change(run)
        scan = put(folder / "a.nii.gz", nifti(image()))
        return ["predict", run, scan, "--out", folder / "out"]

    return Entry(f"predict: {name}", build, said)


def model_given(name: str, model: Callable[[Path, Given], object], said: str) -> Entry:
    def build(folder: Path, given: Given) -> list[object]:
        scan = put(folder / "a.nii.gz", nifti(image()))
        return ["predict", model(folder, given), scan, "--out", folder / "out"]

    return Entry(f"predict: {name}", build, said)


def masks_to(name: str, out: Callable[[Path], object], said: str) -> Entry:
    def build(folder: Path, given: Given) -> list[object]:
        scan = put(folder / "a.nii.gz", nifti(image()))
        return ["predict", given.run, scan, "--out", out(folder)]

    return Entry(f"predict: {name}", build, said)


def changed(path: Path, **values: Any) -> None:
    """Other values of some keys of a JSON file; None takes the key out."""
    content = {**json.loads(path.read_text()), **values}
    write(path, {key: value for key, value in content.items() if value is not None})


def linked_scan(folder: Path, given: Given) -> list[object]:
    put(folder / "elsewhere" / "a.nii.gz", nifti(image()))
    (folder / "b.nii.gz").symlink_to(folder / "elsewhere" / "a.nii.gz")
    return predicted(folder / "b.nii.gz", folder, given)


def scans(*names: str) -> Callable[[Path], object]:
    return lambda folder: [put(folder / name, nifti(image())) for name in names]


NARROW = replace(CONFIG, model=replace(CONFIG.model, channels=(4, 8)))

PREDICT = (
    *(
        of_scan(SCANS[name])
        for name in (
            *("NaN", "constant", "RGB", "series of 3", "zero spacing", "900 mm", "sheared affine"),
            *("1.9 GiB, packed", "1.9 GiB", "terabytes", "gzip bomb", "truncated gzip"),
            *("wrong checksum", "truncated", "not gzip", "text", "empty", "pipe", "device"),
            *("link to nothing", "loop of links"),
        )
    ),
    of_scans("no scan", lambda f: write(f / "notes.txt", "?"), "in: no scans"),
    of_scans(
        "channel too many",
        scans("a_0000.nii.gz", "a_0001.nii.gz"),
        "a_0001.nii.gz: a further channel of a",
    ),
    of_scans("two scans of one name", scans("a.nii.gz", "a.nii"), "is the same case as"),
    of_scans("no name", scans("_0000.nii.gz"), "no name but its channel"),
    of_scans("control character", scans("a\tb.nii.gz"), r"a\\tb.nii.gz.*control characters"),
    of_scans("link out", lambda f: link_out(f / "b.nii.gz"), "a link to .*elsewhere"),
    of_scans("folder among scans", lambda f: (f / "b.nii.gz").mkdir(), "b.nii.gz: a folder"),
    of_scans("unicode and spaces", scans("Ж é 病人.nii.gz"), "1 masks", 0),
    Entry("predict: scan that is a link", linked_scan, "1 masks", 0),
    Entry(
        "predict: no such scan",
        lambda f, g: predicted(f / "none.nii.gz", f, g),
        "none.nii.gz: no such file",
    ),
    Entry(
        "predict: not a scan",
        lambda f, g: predicted(write(f / "notes.txt", "?"), f, g),
        "notes.txt: not a NIfTI name",
    ),
    masks_to("out a file", lambda f: write(f / "out", "?"), "out"),
    masks_to("out below a file", lambda f: write(f / "file", "?") / "out", "file"),
    masks_to("out where none can write", lambda f: "/proc/penn/out", "/proc/penn"),
    masks_to("out the scan's folder", lambda f: f, "would overwrite the scan"),
    masks_to(
        "mask that exists",
        lambda f: put(f / "out" / "a.nii.gz", nifti(label())).parent,
        "out/a.nii.gz: exists.*--overwrite",
    ),
    model_given("no such run", lambda f, _: f / "none", "none"),
    model_given("store for a run", lambda f, g: g.store, "store"),
    model_given("scan for a run", lambda f, _: put(f / "b.nii.gz", nifti(image())), "b.nii.gz"),
    of_run("no checkpoint", lambda r: shutil.rmtree(r / "checkpoints"), "checkpoint"),
    of_run("config.json empty", lambda r: write(r / "config.json", ""), "config.json"),
    of_run("config.json cut off", lambda r: write(r / "config.json", '{"name": '), "config.json"),
    of_run("config.json deep", lambda r: write(r / "config.json", DEEP), "config.json"),
    of_run("config.json binary", lambda r: write(r / "config.json", b"\xff\0"), "config.json"),
    of_run("config.json: key", lambda r: changed(r / "config.json", depth=3), "depth"),
    of_run(
        "config.json: range",
        lambda r: changed(r / "config.json", predict={"batch_size": 0}),
        "batch_size",
    ),
    of_run("config.json: network", lambda r: write_json(r / "config.json", to_json(NARROW)), "run"),
    of_run("environment.json gone", lambda r: (r / "environment.json").unlink(), "environment"),
    of_run("environment.json cut off", lambda r: write(r / "environment.json", "{"), "environment"),
    of_run("environment.json deep", lambda r: write(r / "environment.json", DEEP), "environment"),
    of_run("environment.json an array", lambda r: write(r / "environment.json", []), "environment"),
    of_run(
        "environment.json: no labels",
        lambda r: changed(r / "environment.json", labels=None),
        "labels",
    ),
    of_run(
        "environment.json: labels a text",
        lambda r: changed(r / "environment.json", labels="tumour"),
        "labels",
    ),
    of_run(
        "environment.json: too many channels",
        lambda r: changed(r / "environment.json", channels=["T1", "T2"]),
        "",
    ),
    of_run(
        "environment.json: spacing 0",
        lambda r: changed(r / "environment.json", spacing=[0.0, 0.0]),
        "spacing",
    ),
)


# ---- evaluate ----------------------------------------------------------------------------------


def masks(
    name: str,
    said: str,
    predict: Callable[[Path], object] | None = None,
    refer: Callable[[Path], object] | None = None,
    words: Sequence[object] = (),
    code: int = 2,
) -> Entry:
    """Predictions and references of cases a and b, b of either changed."""

    def build(folder: Path, given: Given) -> list[object]:
        for side, change in (("predictions", predict), ("references", refer)):
            for case in "ab":
                put(folder / side / f"{case}.nii.gz", nifti(label()))
            if change is not None:
                path = folder / side / "b.nii.gz"
                path.unlink()
                change(path)
        out = ["--out", folder / "metrics.json"]
        more = [folder / word[1:] if str(word).startswith("@") else word for word in words]
        return ["evaluate", folder / "predictions", folder / "references", *out, *more]

    return Entry(f"evaluate: {name}", build, said, code)


def gone(path: Path) -> None:
    """The change that leaves nothing."""


def folders_given(name: str, first: Callable[[Path], object], said: str) -> Entry:
    def build(folder: Path, given: Given) -> list[object]:
        put(folder / "references" / "a.nii.gz", nifti(label()))
        return ["evaluate", first(folder), folder / "references"]

    return Entry(f"evaluate: {name}", build, said)


def further(path: Path) -> None:
    for name in ("b", "further [bold]"):
        put(path.with_name(f"{name}.nii.gz"), nifti(label()))


EVALUATE = (
    masks("prediction missing", r"predictions: no prediction for 1 of 2 cases \(b\)", gone),
    masks("other shape", r"predictions/b.nii.gz: shape", nifti_with(label(shape=(12, 14, 5)))),
    masks("other affine", "puts a corner 40 mm off", nifti_with(label(), affine=moved)),
    masks(
        "mirrored affine",
        "predictions/b.nii.gz: its affine puts",
        nifti_with(label(), affine=np.diag([-2.0, 2, 5, 1])),
    ),
    masks("label 255", "predicted label 255", nifti_with(label(255))),
    masks("fraction", "label 0.5 is not a whole number", labels_of(0.5)),
    masks("probabilities", r"its shape is \(12, 14, 4, 2\)", nifti_with(image(0, (*SHAPE, 2)))),
    masks("NaN", "label nan is not a whole number", labels_of(np.nan)),
    masks("truncated", "predictions/b.nii.gz: cannot be read", SCANS["truncated gzip"].make),
    masks("bomb", r"predictions/b.nii.gz: shape \(1000, 1000, 510\)", label_bomb),
    masks("pipe", "predictions/b.nii.gz: a pipe or device", os.mkfifo),
    masks("link to nothing", "which is no file", link_to("nowhere.nii.gz")),
    masks(
        "reference damaged",
        "references/b.nii.gz: cannot be read",
        None,
        SCANS["empty, packed"].make,
    ),
    masks("reference of fractions", "label 0.5", None, labels_of(0.5)),
    masks(
        "two predictions of one case",
        "a second file for case b",
        lambda p: [put(p.with_name(f"b.nii{end}"), nifti(label())) for end in ("", ".gz")],
    ),
    masks("unknown case", "no reference for 1 of 1 cases .c.", words=["--cases", "c"]),
    masks("out in no folder", "its folder does not exist", words=["--out", "@no/metrics.json"]),
    masks("out a folder", "references: is a folder", words=["--out", "@references"]),
    masks("out where none can write", "/proc", words=["--out", "/proc/metrics.json"]),
    masks("further prediction", r"further \[bold\]", further, code=0),
    masks("empty reference", "Dice", None, nifti_with(label(0)), code=0),
    folders_given("no folder", lambda f: f / "none", "none: no such folder"),
    folders_given("a file", lambda f: write(f / "file", "?"), "file: no such folder"),
    folders_given("no masks", lambda f: write(f / "notes.txt", "?").parent, "no masks"),
)


# ---- train -------------------------------------------------------------------------------------


def trained(
    folder: Path, config: object, data: object, *words: object, out: object = None
) -> list[object]:
    return ["train", config, "--data", data, "--out", out or folder / "out", *words]


def config_given(name: str, content: Any, said: str, file: str = "wrong.json") -> Entry:
    def build(folder: Path, given: Given) -> list[object]:
        return trained(folder, write(folder / file, content), given.store)

    return Entry(f"train: {name}", build, said)


def words(name: str, said: str, *given_words: object) -> Entry:
    return Entry(f"train: {name}", lambda f, g: trained(f, g.config, g.store, *given_words), said)


def of_store(
    name: str, change: Callable[[Path], object], said: str, leaves: str = "nothing"
) -> Entry:
    """A store in which something was changed."""

    def build(folder: Path, given: Given) -> list[object]:
        store = Path(shutil.copytree(given.store, folder / "store"))
        change(store)
        return trained(folder, given.config, store)

    return Entry(f"train: {name}", build, said, leaves=leaves)


def of_manifest(name: str, said: str, **values: Any) -> Entry:
    return of_store(name, lambda s: changed(s / "manifest.json", **values), f"manifest.*{said}")


def data_given(name: str, data: Callable[[Path, Given], object], said: str) -> Entry:
    return Entry(f"train: {name}", lambda f, g: trained(f, g.config, data(f, g)), said)


def run_at(name: str, out: Callable[[Path, Given], object], said: str, *more: object) -> Entry:
    return Entry(
        f"train: {name}", lambda f, g: trained(f, g.config, g.store, *more, out=out(f, g)), said
    )


def loop(folder: Path, given: Given) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def climbing(store: Path) -> None:
    """A case whose name leads out of the store."""
    manifest = json.loads((store / "manifest.json").read_text())
    first, *_ = manifest["cases"]
    manifest["cases"]["../../x"] = manifest["cases"].pop(first)
    write(store / "manifest.json", manifest)


def lost_array(store: Path) -> None:
    for case in (store / "cases").iterdir():
        shutil.rmtree(case / "image")


def flipped_chunk(store: Path) -> None:
    for path in (store / "cases").rglob("image/c/**/*"):
        if path.is_file():
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(bytes(content))


TRAIN = (
    Entry("train: no config", lambda f, g: trained(f, f / "no.py", g.store), "no.py: does not"),
    Entry("train: no JSON config", lambda f, g: trained(f, f / "no.json", g.store), "no.json: can"),
    Entry("train: config a folder", lambda f, g: trained(f, f, g.store), "does not exist"),
    config_given("config: syntax", "config = = 1", "wrong.py: SyntaxError", "wrong.py"),
    config_given("config: raises", "1 / 0", "wrong.py: ZeroDivisionError", "wrong.py"),
    config_given("config: no config", "x = 1", "wrong.py: sets no config", "wrong.py"),
    config_given("config: wrong type", "config = {}", "wrong.py: sets no config", "wrong.py"),
    config_given("config: exits", "raise SystemExit(0)", "wrong.py: SystemExit", "wrong.py"),
    config_given("config: binary", b"\xff\0\xfe", "wrong.py: ", "wrong.py"),
    config_given("config: JSON broken", '{"name": ', "wrong.json"),
    config_given("config: JSON empty", "", "wrong.json"),
    config_given("config: JSON an array", [], "wrong.json"),
    config_given("config: JSON deep", DEEP, "wrong.json"),
    config_given("config: unknown key", {"depth": 3}, "wrong.json: depth"),
    config_given("config: unknown key below", {"model": {"depth": 3}}, "model.depth"),
    config_given("config: range", {"optim": {"momentum": 2}}, "optim.momentum"),
    config_given("config: NaN", '{"optim": {"learning_rate": NaN}}', "optim.learning_rate"),
    config_given("config: type", {"model": {"channels": "many"}}, "model.channels"),
    config_given("config: section null", {"model": None}, "wrong.json: model"),
    words("unknown override", "depth", "--model.depth", 3),
    words("override of a wrong type", "learning-rate", "--optim.learning-rate", "fast"),
    words("override out of range", "momentum", "--optim.momentum", 2),
    words("size not a multiple", "--patches.size: .*multiples of 4", "--patches.size", 18, 18),
    words("size of three axes", "--patches.size: 3 axes", "--patches.size", 16, 16, 16),
    words("no budget", "--train.max-steps: 0", "--max-steps", 0),
    words("negative budget", "max_steps", "--max-steps", -1),
    words("fold too high", "store.*split", "--fold", 7),
    words("negative fold", "store.*split", "--fold", -1),
    words("init that is not there", "nowhere", "--init", "nowhere"),
    Entry(
        "train: init a store",
        lambda f, g: trained(f, g.config, g.store, "--init", g.store),
        "store",
    ),
    data_given("no store", lambda f, _: f / "none", "none/manifest.json"),
    data_given("run for a store", lambda f, g: g.run, "run/manifest.json"),
    data_given("raw for a store", lambda f, g: g.raw, "raw/manifest.json"),
    data_given("file for a store", lambda f, _: write(f / "file", "?"), "file"),
    data_given("loop of links", loop, "loop"),
    data_given("unknown scheme", lambda f, _: "ftp://host/store", "ftp:"),
    of_store("manifest cut off", lambda s: os.truncate(s / "manifest.json", 300), "manifest.json"),
    of_store("manifest deep", lambda s: write(s / "manifest.json", DEEP), "manifest.json"),
    of_store(
        "manifest deep objects", lambda s: write(s / "manifest.json", DEEP_OBJECT), "manifest"
    ),
    of_store("case climbing out", climbing, "manifest.json.*x"),
    # Found while training: the run stays, as any that was cut short.
    of_store("array lost", lost_array, "store/cases/.*/image", "out"),
    of_store("byte flipped in every chunk", flipped_chunk, "store/cases/.*/image", "out"),
    of_manifest("manifest: other format", "format", format=99),
    of_manifest("manifest: no labels", "labels", labels=None),
    of_manifest("manifest: no splits", "splits", splits=None),
    of_manifest("manifest: unknown key", "further", further=1),
    of_manifest(
        "manifest: split of a missing case", "x", splits=[{"train": ["x"], "validation": []}]
    ),
    run_at("out a file", lambda f, _: write(f / "out", "?"), "out"),
    run_at("out another folder", lambda f, g: write(f / "o", "?").parent, "is not empty and not a"),
    run_at("out a run", lambda f, g: shutil.copytree(g.run, f / "run"), "holds a run.*--resume"),
    run_at("out below a file", lambda f, _: write(f / "file", "?") / "out", "file"),
    run_at("out where none can write", lambda f, _: "/proc/penn/run", "/proc/penn"),
    run_at(
        "resume with another config",
        lambda f, g: shutil.copytree(g.run, f / "run"),
        "written by another config",
        *("--resume", "--optim.momentum", 0.5),
    ),
)


# ---- the command itself ------------------------------------------------------------------------

COMMAND = (
    Entry("no command", lambda f, _: [], "COMMAND"),
    Entry("unknown command", lambda f, _: ["segment"], "invalid choice"),
    Entry("predict: no --out", lambda f, g: ["predict", g.run, f], "--out"),
    Entry("evaluate: one folder", lambda f, _: ["evaluate", f], "references"),
)

CORPUS = (*COMMAND, *PREPARE, *PREDICT, *EVALUATE, *TRAIN)
