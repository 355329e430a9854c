import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from penn_jax.config import PrepareConfig
from penn_jax.data import prepare as module
from penn_jax.data.grid import normalise
from penn_jax.data.prepare import prepare, summary
from penn_jax.data.store import Store
from penn_jax.pretrain import pretraining_cases
from penn_jax.types import InputError

SHAPE = (4, 12, 10)
AFFINE = np.diag([3.0, 1.0, 1.5, 1.0])
"""Sagittal slices of 1 × 1.5 mm, stored along R, A, S."""


def scan(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def mask(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed + 1000).integers(0, 3, shape).astype(np.uint8)


def save(path: Path, array: np.ndarray, affine=AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(array, affine).to_filename(path)


def make_raw(root: Path, cases: int = 6) -> Path:
    for k in range(cases):
        save(root / f"imagesTr/c{k}_0000.nii.gz", scan(k))
        save(root / f"labelsTr/c{k}.nii.gz", mask(k))
    labels = {"background": 0, "bone": 1, "disc": 2}
    text = json.dumps({"channel_names": {"0": "T1"}, "labels": labels})
    (root / "dataset.json").write_text(text)
    return root


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw")


def manifest_of(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def run(raw: Path, out: Path | None = None, workers: int = 1, **options) -> dict:
    return manifest_of(prepare(raw, out or raw.parent / "out", PrepareConfig(**options), workers))


def refused(message: str, raw: Path, out: Path | None = None, **options) -> None:
    out = out or raw.parent / "out"
    before = sorted(raw.parent.rglob("*"))
    with pytest.raises(InputError) as caught:
        run(raw, out, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(raw.parent.rglob("*")) == before  # nothing half-written


def whole(store: Store, case: str) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in store.frames_shape(case)[:-1])


def test_arrays_and_manifest(raw):
    manifest = run(raw)
    store = Store(raw.parent / "out")
    assert store.cases == tuple(f"c{k}" for k in range(6))
    for k, case in enumerate(store.cases):
        # The slice axis R is first in the files already, so frames are the arrays as saved.
        expected = normalise(scan(k)[..., None].astype(np.float32))
        np.testing.assert_array_equal(store.image(case, whole(store, case)), expected)
        np.testing.assert_array_equal(store.labels(case, whole(store, case)), mask(k))
    assert manifest["dimensions"] == 2
    assert manifest["spacing"] == [1.0, 1.5]
    assert manifest["channels"] == ["T1"]
    assert manifest["labels"] == {"background": 0, "bone": 1, "disc": 2}
    assert manifest["label_values"] == [0, 1, 2]
    assert manifest["findings"] == []
    record = manifest["cases"]["c0"]
    assert record["shape"] == [4, 12, 10]
    assert record["native_spacing"] == [3.0, 1.0, 1.5]
    assert record["orientation"] == "RAS"
    assert record["frames_shape"] == [4, 12, 10, 1]
    assert record["affine"] == AFFINE.tolist()
    assert record["voxels"] == {str(c): int((mask(0) == c).sum()) for c in range(3)}
    assert record["intensity"]["maximum"] == [scan(0).max()]
    assert record["intensity"]["median"] == [np.median(scan(0))]
    assert [source["path"] for source in record["sources"]] == [
        "imagesTr/c0_0000.nii.gz",
        "labelsTr/c0.nii.gz",
    ]


def test_two_processes_write_what_one_does(raw):
    one = run(raw, raw.parent / "one")
    two = run(raw, raw.parent / "two", workers=2)
    assert one == two
    files = sorted(p.relative_to(raw.parent / "one") for p in (raw.parent / "one").rglob("*"))
    for path in files:
        if (raw.parent / "one" / path).is_file():
            assert (raw.parent / "one" / path).read_bytes() == (
                raw.parent / "two" / path
            ).read_bytes()


def test_an_error_in_a_process_names_the_file(raw):
    (raw / "imagesTr/c3_0000.nii.gz").write_bytes(b"not a scan")
    refused("c3_0000.nii.gz: cannot be read (Not a gzipped file", raw, workers=2)


def test_median_spacing_resamples_images_and_labels(raw):
    save(raw / "imagesTr/c0_0000.nii.gz", scan(0), np.diag([3.0, 2.0, 1.505, 1.0]))
    save(raw / "labelsTr/c0.nii.gz", mask(0), np.diag([3.0, 2.0, 1.505, 1.0]))
    # A test case has no say in the median.
    save(raw / "imagesTs/t_0000.nii.gz", scan(9), np.diag([30.0, 20.0, 15.0, 1.0]))
    manifest = run(raw)
    assert manifest["spacing"] == [1.0, 1.5]
    # 12 voxels of 2 mm make 24 of 1 mm; 1.505 mm is within 1 % of 1.5 mm and stays.
    assert manifest["cases"]["c0"]["frames_shape"] == [4, 24, 10, 1]
    assert manifest["cases"]["c1"]["frames_shape"] == [4, 12, 10, 1]
    assert manifest["cases"]["t"]["frames_shape"] == [4, 240, 100, 1]
    store = Store(raw.parent / "out")
    labels = store.labels("c0", whole(store, "c0"))
    np.testing.assert_array_equal(labels, np.repeat(mask(0), 2, axis=1))
    assert not manifest["cases"]["t"]["labelled"]


def test_given_and_native_spacing_in_both_dimensions(raw):
    native = run(raw, raw.parent / "native", spacing="native", dimensions=3)
    assert native["spacing"] is None
    assert native["cases"]["c0"]["frames_shape"] == [1, 4, 12, 10, 1]
    given = run(raw, raw.parent / "given", spacing=(1.5, 2.0, 1.5), dimensions=3)
    assert given["cases"]["c0"]["frames_shape"] == [1, 8, 6, 10, 1]
    assert given["cases"]["c0"]["slice_axis"] is None
    refused("spacing: 2 values, expected 3", raw, spacing=(1.0, 1.0), dimensions=3)


def test_merged_labels(raw):
    manifest = run(raw, merge_labels=True)
    assert manifest["labels"] == {"background": 0, "foreground": 1}
    assert manifest["label_values"] == [0, 1]
    store = Store(raw.parent / "out")
    np.testing.assert_array_equal(store.labels("c1", whole(store, "c1")), mask(1) > 0)


def test_the_ignore_label_becomes_255(raw):
    labels = {"background": 0, "bone": 1, "ignore": 2}
    text = json.dumps({"channel_names": {"0": "T1"}, "labels": labels})
    (raw / "dataset.json").write_text(text)
    for merge in (False, True):
        manifest = run(raw, raw.parent / f"out{merge}", merge_labels=merge)
        assert len(manifest["labels"]) == 2
        assert manifest["cases"]["c0"]["voxels"]["255"] == (mask(0) == 2).sum()
        store = Store(raw.parent / f"out{merge}")
        expected = np.where(mask(0) == 2, 255, mask(0))
        np.testing.assert_array_equal(store.labels("c0", whole(store, "c0")), expected)


def test_values_of_a_folder_without_dataset_json_become_classes(tmp_path):
    for name, values in (("a", (0, 50)), ("b", (0, 255)), ("c", (0, 50))):
        save(tmp_path / f"raw/images/{name}.nii.gz", scan(ord(name)))
        save(tmp_path / f"raw/labels/{name}.nii.gz", np.array(values, np.uint8)[mask(1) % 2])
    save(tmp_path / "raw/images/unlabelled.nii.gz", scan(5))
    manifest = run(tmp_path / "raw")
    assert manifest["labels"] == {"background": 0, "label 50": 1, "label 255": 2}
    assert manifest["label_values"] == [0, 50, 255]
    assert manifest["cases"]["b"]["voxels"] == {
        "0": int((mask(1) != 1).sum()),
        "1": 0,
        "2": int((mask(1) == 1).sum()),
    }
    assert not manifest["cases"]["unlabelled"]["labelled"]
    assert sum(len(names) for names in manifest["splits"][0].values()) == 3
    findings = "\n".join(manifest["findings"])
    assert "unlabelled, for pre-training only: unlabelled" in findings
    assert "renumbered: 0 is class 0, 50 is class 1, 255 is class 2" in findings
    assert "label 50 is missing in b" in findings


def test_unlabelled_folders_serve_pretraining(tmp_path):
    save(tmp_path / "raw/images/a.nii.gz", scan(0))
    manifest = run(tmp_path / "raw")
    assert manifest["splits"] == [{"train": [], "validation": []}]
    assert "no case is labelled" in manifest["findings"][0]
    print_summary(manifest)


def test_bad_labels_are_refused(raw):
    save(raw / "labelsTr/c2.nii.gz", mask(2) * 3)
    refused("labelsTr/c2.nii.gz: unknown label values 3, 6, expected 0, 1, 2", raw)
    save(raw / "labelsTr/c2.nii.gz", mask(2)[:, :, :-1])
    refused("labelsTr/c2.nii.gz: shape (4, 12, 9), expected (4, 12, 10)", raw)
    save(raw / "labelsTr/c2.nii.gz", mask(2), np.diag([-3.0, 1, 1.5, 1]))
    refused("labelsTr/c2.nii.gz: its affine puts a corner 18 mm off", raw)


def test_a_second_run_does_no_work(raw, monkeypatch):
    run(raw)
    before = {p: p.stat().st_mtime_ns for p in (raw.parent / "out").rglob("*")}
    monkeypatch.setattr(module, "_prepare_case", None)  # the work would fail
    run(raw)
    assert {p: p.stat().st_mtime_ns for p in (raw.parent / "out").rglob("*")} == before


def test_a_second_run_says_so(raw, capsys):
    out = raw.parent / "out"
    for _ in range(2):
        prepare(raw, out, PrepareConfig(), 1, progress=True)
    assert "already prepared" in " ".join(capsys.readouterr().err.split())


def test_what_is_there_is_never_overwritten(raw, tmp_path):
    run(raw)
    refused("out: is a store prepared with other options", raw, seed=1)
    save(raw / "imagesTr/c0_0000.nii.gz", scan(77))
    refused("out: is a store prepared from other scans", raw)
    (tmp_path / "mine").mkdir()
    run(raw, tmp_path / "mine")  # an empty folder is free
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").touch()
    refused("other: is a folder that is not a prepared store", raw, tmp_path / "other")
    refused("is a file", raw, tmp_path / "other/thesis.txt")
    (tmp_path / "other/manifest.json").write_text("{}")
    refused("other: is a folder that is not a prepared store", raw, tmp_path / "other")


def test_splits_of_the_folder_are_honoured(raw):
    split = {"train": ["c0", "c1", "c5"], "val": ["c2"]}
    (raw / "splits_final.json").write_text(json.dumps([split]))
    manifest = run(raw)
    assert manifest["splits"] == [{"train": ["c0", "c1", "c5"], "validation": ["c2"]}]


def test_a_given_split_that_leaks_is_an_error_unless_allowed(raw):
    split = {"train": ["c0", "c1", "c5"], "val": ["c2"]}
    (raw / "splits_final.json").write_text(json.dumps([split]))
    save(raw / "imagesTr/c2_0000.nii.gz", scan(0))
    leak = "split 0 trains on c0 and validates on c2, the same scan"
    refused(f"raw: 1 leak: {leak}, expected each scan and each subject on one side", raw)
    manifest = run(raw, allow_leak=True)
    assert manifest["config"]["allow_leak"]
    assert manifest["findings"] == [
        leak,
        "identical scans under different names: c0, c2",
        "left out of pre-training on split 0, the same scan or subject "
        "as a validation or test case: c0 (as c2)",
    ]


def test_a_subject_on_both_sides_is_an_error(raw):
    for name in ("sub-1_a", "sub-1_b"):
        save(raw / f"imagesTr/{name}_0000.nii.gz", scan(ord(name[-1])))
        save(raw / f"labelsTr/{name}.nii.gz", mask(0))
    splits = [
        {"train": ["c0", "sub-1_a"], "val": ["c1", "c2"]},
        {"train": ["c0", "sub-1_a"], "val": ["c1", "sub-1_b"]},
    ]
    (raw / "splits_final.json").write_text(json.dumps(splits))
    refused("split 1 trains on sub-1_a and validates on sub-1_b, of one subject", raw)


@pytest.mark.parametrize("given", [True, False])
def test_a_test_case_that_is_also_trained_or_validated_on_is_an_error(raw, given):
    if given:
        split = {"train": ["c0", "c1"], "val": ["c2"]}
        (raw / "splits_final.json").write_text(json.dumps([split]))
    # In another type, on another scale, transposed, and the header says nothing of it.
    array = scan(2).transpose(1, 2, 0)[:, ::-1] * np.float64(0.25)
    save(raw / "imagesTs/t_0000.nii.gz", array)
    refused("the splits use c2 and imagesTs has t, the same scan", raw)


def test_unlabelled_copies_of_validation_cases_are_left_out_of_pretraining(tmp_path):
    for k in range(4):
        save(tmp_path / f"raw/images/c{k}.nii.gz", scan(k))
        save(tmp_path / f"raw/labels/c{k}.nii.gz", mask(k))
    save(tmp_path / "raw/images/copy.nii.gz", scan(1)[:, ::-1])
    save(tmp_path / "raw/images/other.nii.gz", scan(9))
    split = {"train": ["c0", "c2", "c3"], "val": ["c1"]}
    (tmp_path / "raw/splits_final.json").write_text(json.dumps([split]))
    manifest = run(tmp_path / "raw")
    assert [line for line in manifest["findings"] if "left out" in line] == [
        "left out of pre-training on split 0, the same scan or subject "
        "as a validation or test case: copy (as c1)"
    ]
    assert pretraining_cases(Store(tmp_path / "out"), 0) == ["c0", "c2", "c3", "other"]
    for name in ("c0", "c2", "c3", "other"):
        save(tmp_path / f"raw/images/{name}.nii.gz", scan(1))
    prepare(tmp_path / "raw", tmp_path / "leaking", PrepareConfig(allow_leak=True), 1)
    with pytest.raises(InputError, match="no case to pre-train on: c0, c2, c3, copy, other of the"):
        pretraining_cases(Store(tmp_path / "leaking"), 0)


def test_identical_scans_are_found_in_any_orientation(raw):
    # The same voxels stored from left to right and from right to left.
    save(raw / "imagesTr/c2_0000.nii.gz", scan(0)[::-1], np.diag([-3.0, 1, 1.5, 1]))
    save(raw / "labelsTr/c2.nii.gz", mask(0)[::-1], np.diag([-3.0, 1, 1.5, 1]))
    for seed in range(8):
        manifest = run(raw, raw.parent / str(seed), seed=seed)
        assert "identical scans under different names: c0, c2" in manifest["findings"]
        for side in manifest["splits"][0].values():
            assert ("c0" in side) == ("c2" in side)


def test_oddities_are_findings_and_no_errors(raw):
    save(raw / "imagesTr/c0_0000.nii.gz", scan(0) * 20)
    save(raw / "labelsTr/c0.nii.gz", np.zeros(SHAPE, np.uint8))
    save(raw / "labelsTr/c1.nii.gz", (mask(1) == 1).astype(np.uint8))
    for k, (shape, affine) in {
        2: ((9, 12, 10), AFFINE),
        3: (SHAPE, np.diag([3.0, 1, 2.5, 1])),
        4: (SHAPE, np.diag([1.0, 1.5, 3.0, 1])),
    }.items():
        save(raw / f"imagesTr/c{k}_0000.nii.gz", scan(k, shape), affine)
        save(raw / f"labelsTr/c{k}.nii.gz", mask(k, shape), affine)
    found = run(raw, spacing="native")["findings"]
    expected = (
        ("no foreground: c0",),
        ("disc is missing in c1",),
        ("T1 spans", "c0"),
        ("9 slices, where the median is 4: c2",),
        ("spacing 1 × 2.5 × 3 mm, where the median is 1 × 1.5 × 3: c3",),
        ("sliced in the axial plane unlike most: c4",),
    )
    for parts in expected:
        assert any(all(part in line for part in parts) for line in found), (parts, found)


def print_summary(manifest: dict) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(summary(manifest))
    return capture.get()


def test_summary_tells_what_was_found(raw):
    save(raw / "labelsTr/c0.nii.gz", np.zeros(SHAPE, np.uint8))
    text = print_summary(run(raw))
    share = sum((mask(k) == 1).sum() for k in range(1, 6)) / (6 * np.prod(SHAPE))
    for part in ("6 of 6 subjects", "5 train, 1 validation", "3 × 1 × 1.5 mm", "1 × 1.5 mm"):
        assert part in text
    assert f"{100 * share:.3f} %" in text
    assert "5 of 6" in text
    assert "! no foreground: c0" in text


def test_a_killed_run_leaves_nothing_that_looks_finished(raw):
    out = raw.parent / "out"
    script = (
        "import signal, time\n"
        "from pathlib import Path\n"
        # A shell's background job starts with interrupts ignored, and so does all it starts.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from penn_jax.config import PrepareConfig\n"
        "from penn_jax.data import prepare\n"
        "real = prepare._prepare_case\n"
        "def slow(case, *, plan):\n"
        "    if case.name == 'c3': time.sleep(60)\n"
        "    return real(case, plan=plan)\n"
        "prepare._prepare_case = slow\n"
        f"prepare.prepare(Path({str(raw)!r}), Path({str(out)!r}), PrepareConfig(), 1)\n"
    )
    partial = raw.parent / ".out.partial"
    for end, left in ((signal.SIGKILL, True), (signal.SIGINT, False)):
        process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not (partial / "cases/c2/foreground").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, end)
        assert process.wait(30) != 0
        assert not out.exists()
        assert partial.exists() == left
        if left:
            assert not (partial / "manifest.json").exists()
            (partial / "cases/old").mkdir()  # of a run of other scans: must not survive
            (partial / "cases/c2/foreground").rename(partial / "cases/c2/moved")
    run(raw)
    assert not partial.exists()
    assert sorted(p.name for p in (out / "cases").iterdir()) == [f"c{k}" for k in range(6)]


SLOW_PREPARE = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from penn_jax.config import PrepareConfig\n"
    "from penn_jax.data import prepare\n"
    "real = prepare._prepare_case\n"
    "def slow(case, *, plan):\n"
    "    record = real(case, plan=plan)\n"
    "    if case.name in ('c2', 'c3'):\n"
    "        (plan.folder / f'{case.name} is done').touch()\n"
    "        time.sleep(60)\n"
    "    return record\n"
    # Workers import this file anew and must find the slow function as well.
    "prepare._prepare_case = slow\n"
    "if __name__ == '__main__':\n"
    "    raw, out, workers = sys.argv[1:]\n"
    "    prepare._prepare_case.__module__ = '__main__'\n"
    "    prepare.prepare(Path(raw), Path(out), PrepareConfig(), int(workers))\n"
)


@contextmanager
def slow_prepare(raw: Path, out: Path, workers: int) -> Iterator[subprocess.Popen]:
    """Another process that prepares and stops in the middle, when c2 is written."""
    script = raw.parent / "slow.py"
    script.write_text(SLOW_PREPARE)
    command = [sys.executable, script, raw, out, str(workers)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    try:
        until(lambda: (out.parent / f".{out.name}.partial/c2 is done").exists())
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


def workers_of(parent: int) -> list[int]:
    """Processes that a pool started: the interpreter's own tracker of semaphores is none."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            of = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if of == parent and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def is_running(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_second_process_is_told_of_the_first(raw):
    out = raw.parent / "out"
    with slow_prepare(raw, out, 1):
        refused("out: is being made by another process, expected one at a time", raw)
        run(raw, raw.parent / "another")
    # The first was killed: its lock went with it, and its folder is cleaned up.
    run(raw)
    left = {path.name for path in raw.parent.iterdir()}
    assert left == {"raw", "out", "another", "slow.py"}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed in /proc")
def test_workers_of_a_killed_process_end(raw):
    out = raw.parent / "out"
    with slow_prepare(raw, out, 2) as process:
        workers = workers_of(process.pid)
        assert len(workers) == 2
        assert all(map(is_running, workers))
        process.kill()
        until(lambda: not any(map(is_running, workers)), 10)
    assert not out.exists()
    run(raw)
    assert sorted(p.name for p in (out / "cases").iterdir()) == [f"c{k}" for k in range(6)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed in /proc")
def test_a_killed_worker_is_one_line_and_leaves_nothing(raw):
    out = raw.parent / "out"
    with slow_prepare(raw, out, 2) as process:
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        _, said = process.communicate(timeout=30)
    assert "InputError: preparing: a process was killed" in said.decode().splitlines()[-1]
    assert {path.name for path in raw.parent.iterdir()} == {"raw", "slow.py"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_leaves_nothing(raw, workers):
    # Many slices: nothing may be on its way to the disk when the folder is removed.
    save(raw / "imagesTr/c0_0000.nii.gz", scan(0, (60, 64, 64)))
    save(raw / "labelsTr/c0.nii.gz", mask(0, (60, 64, 64)))
    # No file above 1 kB: the system refuses to write, as it does when the disk is full.
    script = (
        "import resource, sys\n"
        "from penn_jax.cli import main\n"
        "if __name__ == '__main__':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    (raw.parent / "limited.py").write_text(script)
    out = raw.parent / "folders/of/out"
    command = [sys.executable, raw.parent / "limited.py", "prepare", raw, out]
    answer = subprocess.run(
        [*command, "--workers", str(workers)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert "File too large" in line
    assert "the space left" in line
    assert {path.name for path in raw.parent.iterdir()} == {"raw", "limited.py"}


DATA = Path(os.environ.get("PENN_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.mark.skipif(not (DATA / "spine_t1").is_dir(), reason="PENN_DATA has no spine_t1")
def test_real_spines(tmp_path):
    manifest = run(DATA / "spine_t1", tmp_path / "out", workers=2)
    assert len(manifest["cases"]) == 28
    # As the headers of all 28 files say: 19 sagittal slices of 224 × 224 voxels of 1 mm.
    assert {tuple(c["frames_shape"]) for c in manifest["cases"].values()} == {(19, 224, 224, 1)}
    assert manifest["findings"] == ["identical scans under different names: sub18, sub19"]
    assert [len(names) for names in manifest["splits"][0].values()] == [22, 6]
    # Vertebrae lie below one another: the mean position along S falls from V1 to V5 or rises.
    store = Store(tmp_path / "out")
    heights = [store.foreground("sub01")[label][:, 2].mean() for label in range(1, 6)]
    steps = np.diff(heights)
    assert (steps > 10).all() or (steps < -10).all()
