"""A study: which runs it makes, that it goes on where it stopped, and what its table says."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest
from made_stores import write_manifest, write_store

from penn_jax import study as module
from penn_jax.config import Arm, Config, ModelConfig, PatchConfig, Study, TrainConfig
from penn_jax.config_file import read_study_file
from penn_jax.data.store import Store
from penn_jax.report.metrics import confusion
from penn_jax.run import read_card, read_config
from penn_jax.study import empty_counts, inner_store, study
from penn_jax.study_jobs import Job, chosen_rate, wanted
from penn_jax.study_phantoms import check_phantoms
from penn_jax.study_table import mean_dice, repeatable, time_to_target
from penn_jax.task import pretraining_cases
from penn_jax.types import BusyError, DivergedError, InputError

CONFIG = Config(
    patches=PatchConfig(size=(16, 16)),
    model=ModelConfig(stem=4, channels=(4,), blocks=1),
    train=TrainConfig(
        batch_size=4, max_steps=2, validate_every=1, checkpoint_every=1, log_every=1, labelled=2
    ),
)
PRETRAINING = replace(CONFIG, name="masked", train=replace(CONFIG.train, labelled=0))
STUDY = Study(
    name="trial",
    title="Trial",
    arms=(
        Arm("scratch", CONFIG, learning_rates=(0.01, 0.1)),
        Arm("masked", CONFIG, pretrain=PRETRAINING, baseline="scratch"),
        Arm("taught", CONFIG, pretrain=PRETRAINING, teacher="scratch", baseline="scratch"),
    ),
    seeds=(0, 1),
    target_dice=0.01,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    generator, cases = np.random.default_rng(0), {}
    for name in "abcdefgh":
        labels = np.zeros((2, 18, 20), np.uint8)
        labels[:, 5:9, 5:9] = 1
        image = (generator.normal(size=labels.shape) + labels)[..., None].astype(np.float32)
        cases[name] = (image, None if name == "f" else labels)
    split = {"train": list("abcdef"), "validation": list("gh")}
    write_store(
        folder,
        cases,
        splits=[split],
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, record in manifest["cases"].items():
        record |= {
            "subject": name,
            "fingerprint": f"{ord(name):064x}",
            "native_spacing": [8.0, 8.0, 12.0],
        }
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """A study that nothing interrupts."""
    out = tmp_path_factory.mktemp("study") / "whole"
    return out, study(STUDY, store, out, progress=False)


def test_every_run_is_made_once_and_arms_share_pre_training(whole):
    out, table = whole
    made = sorted(path.parent.relative_to(out).as_posix() for path in out.rglob("result.json"))
    arms = ("masked", "scratch", "taught")
    runs = [f"runs/{arm}/fold0-seed{seed}" for arm in arms for seed in (0, 1)]
    sweeps = ["sweeps/scratch/fold0-rate0.01", "sweeps/scratch/fold0-rate0.1"]
    assert [name for name in made if not name.startswith("pretraining/")] == [*runs, *sweeps]
    assert len(made) == len(runs) + len(sweeps) + 4  # two pre-trainings for each seed
    for name in runs:
        config, seed = read_config(out / name), int(name[-1])
        assert config.train.seed == seed
        start = read_card(out / name).get("init")
        assert (start is not None) == ("scratch" not in name)
        if start is not None:
            assert read_config(Path(start)).train.seed == seed
            taught_by = read_card(Path(start)).get("teacher")
            expected = str(out / f"runs/scratch/fold0-seed{seed}") if "taught" in name else None
            assert taught_by == expected
    assert {arm["name"]: len(arm["runs"]) for arm in table["arms"]} == dict.fromkeys(arms, 2)


def test_an_arm_may_start_from_synthetic_spines(store, tmp_path, monkeypatch):
    trained = []

    def diverges(config, data, out, start, *_):  # so that there is no network to compile
        trained.append((data, out))
        assert start is None
        raise DivergedError("at once")

    monkeypatch.setattr(module, "train", diverges)
    arm = Arm("scratch", CONFIG, pretrain=PRETRAINING, phantoms=5)
    study(replace(STUDY, arms=(arm,), seeds=(0,)), store, tmp_path / "study", progress=False)
    ((spines, out),) = trained
    assert spines.path == str(tmp_path / "study/pretraining/phantoms/5")
    assert len(spines.manifest["cases"]) == 5
    assert spines.manifest["labels"] == {"background": 0, "vertebrae": 1}
    like = Store(store).manifest
    assert spines.manifest["spacing"] == like["spacing"]
    for record in spines.manifest["cases"].values():
        for part in ("shape", "native_spacing"):
            assert record[part] == like["cases"]["a"][part]
    # The run that is compared waits for it, and is on the scans.
    result = json.loads((tmp_path / "study/runs/scratch/fold0-seed0/result.json").read_text())
    assert result["diverged"] == f"{out} diverged"
    assert set(result["counts"]) == {"g", "h"}


def test_runs_on_synthetic_spines_depend_on_the_seed_alone(tmp_path):
    arm = Arm("scratch", CONFIG, pretrain=PRETRAINING, phantoms=5, learning_rates=(0.01, 0.1))
    asked = replace(STUDY, arms=(arm,), folds=(0, 1))
    first, *others = [job.start for job in wanted(asked, tmp_path)]
    assert len(others) == 3  # two rates and two folds: a network that saw none of their scans
    assert all(other == first for other in others)
    assert (first.phantoms, first.fold, first.choosing, first.restores) == (5, 0, False, False)
    assert first.config.train.seed == STUDY.sweep_seed
    arm = replace(arm, learning_rates=())
    seeds = [job.start.config.train.seed for job in wanted(replace(asked, arms=(arm,)), tmp_path)]
    assert seeds == [0, 0, 1, 1]


def test_a_study_is_of_scans_as_they_were_prepared_and_split(whole, store, tmp_path):
    out, _ = whole
    other = shutil.copytree(store, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["splits"][0]["train"].remove("a")
    write_manifest(other, manifest)
    with pytest.raises(InputError, match="another study or other data"):
        study(STUDY, other, out, resume=True, progress=False)


def test_only_budgets_in_steps_can_be_repeated():
    assert repeatable(STUDY)
    timed = replace(PRETRAINING, train=replace(PRETRAINING.train, max_seconds=9.0))
    scratch, masked, _ = STUDY.arms
    assert not repeatable(replace(STUDY, arms=(scratch, replace(masked, pretrain=timed))))
    assert not repeatable(replace(STUDY, arms=(replace(scratch, config=timed),)))


def test_scans_of_several_channels_cannot_follow_synthetic_spines(store, tmp_path):
    two = Store(store)
    two.manifest["channels"] = ["T1", "T2"]
    with pytest.raises(InputError, match="channels T1, T2, expected one channel"):
        check_phantoms(two)


def test_the_table_holds_what_the_runs_counted(whole):
    out, table = whole
    scratch, masked, taught = table["arms"]
    for arm in (scratch, masked):
        for run in arm["runs"]:
            counts = json.loads((out / run["folder"] / "result.json").read_text())["counts"]
            assert set(run["cases"]) == {"g", "h"}
            for case, values in run["cases"].items():
                tp, fp, fn, _ = np.array(counts[case])  # of three classes
                there = tp + fp + fn > 0
                by_class = 2 * tp[there] / (2 * tp + fp + fn)[there]
                assert values["dice"] == pytest.approx(by_class.mean(), abs=1e-12)
            assert [step for step, _, _ in run["curve"]] == [1, 2]
            # The table scores the last weights, which were the last to be validated.
            assert run["dice"] == pytest.approx(run["curve"][-1][2], abs=1e-6)
    means = [
        np.mean([values["dice"] for run in arm["runs"] for values in run["cases"].values()])
        for arm in (scratch, masked)
    ]
    assert masked["difference"]["value"] == pytest.approx(means[1] - means[0], abs=1e-12)
    assert scratch["difference"] is None
    assert masked["pretraining"]["steps"] == 2
    assert taught["pretraining"]["steps"] == 4  # its teacher's and its own
    assert scratch["pretraining"] is None
    tried = {one["learning_rate"]: one["chosen"] for one in scratch["sweep"]}
    assert tried.keys() == {0.01, 0.1}
    (chosen,) = (rate for rate, is_chosen in tried.items() if is_chosen)
    assert {run["learning_rate"] for run in scratch["runs"]} == {chosen}
    assert {run["learning_rate"] for run in masked["runs"]} == {CONFIG.optim.learning_rate}
    for name in ("table.json", "table.md", "cases.csv", "report.html"):
        assert (out / name).stat().st_size > 200
    assert json.loads((out / "table.json").read_text()) == json.loads(json.dumps(table))


def test_pooled_metrics_are_of_all_seeds_with_intervals_over_cases(whole):
    out, table = whole
    for arm in table["arms"]:
        results = [json.loads((out / r["folder"] / "result.json").read_text()) for r in arm["runs"]]
        of_case = {
            case: sum(np.array(result["counts"][case]).sum(axis=1) for result in results)
            for case in ("g", "h")
        }
        tp, fp, fn, _ = sum(of_case.values())
        pooled = arm["six"]["pooled"]["dice"]
        assert pooled["value"] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-12)
        low, high = pooled["ci95"]
        assert 0 <= low <= pooled["value"] <= high <= 1


def test_code_that_made_any_run_is_told(whole, store, tmp_path):
    out = shutil.copytree(whole[0], tmp_path / "copy")
    parts = (out / "runs/scratch", out / "pretraining", out / "sweeps")
    for number, part in enumerate(parts):
        path = min(part.rglob("result.json"))
        path.write_text(json.dumps(json.loads(path.read_text()) | {"code": f"of {number}"}))
    table = study(STUDY, store, out, resume=True, progress=False)
    assert {f"of {number}" for number in range(3)} < set(table["hashes"]["code"].split(", "))


def test_a_study_that_was_interrupted_ends_with_the_same_hash(whole, store, tmp_path, monkeypatch):
    before, table = whole
    out, calls = tmp_path / "again", []
    shutil.copytree(before, out)
    # As a kill leaves it: some runs not begun, no table.
    for name in ("runs/scratch/fold0-seed1", "runs/masked/fold0-seed0", "runs/taught/fold0-seed1"):
        shutil.rmtree(out / name)
    for name in ("table.json", "table.md", "cases.csv", "report.html"):
        (out / name).unlink()

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) % 2:
            raise KeyboardInterrupt
        return trains(*arguments, **options)

    trains = module.train
    monkeypatch.setattr(module, "train", interrupted)
    stops = 0
    while not (out / "table.json").exists():
        try:
            again = study(STUDY, store, out, resume=True, progress=False)
        except KeyboardInterrupt:
            stops += 1
    assert stops == 3  # before each of the runs that were left to do
    assert again["hashes"] == table["hashes"]


def test_another_study_or_no_study_is_not_gone_on_with(whole, store, tmp_path):
    out, _ = whole
    with pytest.raises(InputError, match=r"holds a study.*add --resume"):
        study(STUDY, store, out, progress=False)
    with pytest.raises(InputError, match="was written for another study"):
        study(replace(STUDY, seeds=(0,)), store, out, resume=True, progress=False)
    (tmp_path / "letters.txt").write_text("private")
    with pytest.raises(InputError, match="is not empty and not a study"):
        study(STUDY, store, tmp_path, progress=False)


def test_a_run_that_another_process_holds_is_left_to_it(store, tmp_path):
    job = Job(tmp_path / "run", CONFIG, 0)
    job.folder.mkdir()
    with filelock.FileLock(job.folder / ".lock"):
        assert module._attempt(job, Store(store), False) is None
        with pytest.raises(BusyError, match="another process is writing it"):
            module.train(CONFIG, store, job.folder, progress=False)
    assert not job.result.exists()


def test_the_rate_that_reaches_the_target_first_is_chosen(tmp_path):
    arm = replace(STUDY.arms[0], learning_rates=(0.1, 0.2, 0.3))
    asked = replace(STUDY, arms=(arm,), target_dice=0.5)
    sweep = list(wanted(asked, tmp_path))
    assert [job.config.optim.learning_rate for job in sweep] == [0.1, 0.2, 0.3]
    assert all(job.choosing and job.config.train.seed == asked.sweep_seed for job in sweep)
    # (steps to the target, final Dice): never but highest; late; early.
    for job, (reached, true_positive) in zip(sweep, [(None, 9), (40, 8), (20, 7)], strict=True):
        assert chosen_rate(arm, 0, asked, tmp_path) is None
        curve = [[10, 1.0, 0.1]] + ([] if reached is None else [[reached, 2.0, 0.5]])
        job.folder.mkdir(parents=True)
        counts = {"a": [[true_positive], [1], [1], [0]]}
        job.result.write_text(json.dumps({"curve": curve, "counts": counts}))
    assert chosen_rate(arm, 0, asked, tmp_path) == 0.3
    assert chosen_rate(arm, 0, replace(asked, target_dice=0.0), tmp_path) == 0.1
    assert time_to_target(json.loads(sweep[1].result.read_text()), 0.5) == (40, 2.0)


def test_choices_are_made_on_training_cases_alone(store):
    made = Store(store)
    inside = inner_store(made, 0)
    # The fourth of a, b, c, d, e; f has no label and stays for pre-training.
    assert inside.split(0) == {"train": list("abcef"), "validation": ["d"]}
    assert pretraining_cases(inside, 0) == list("abcef")
    assert made.split(0)["validation"] == ["g", "h"]
    # An unlabelled scan of a validation case's person is not seen either.
    made.manifest["cases"]["f"]["subject"] = "g"
    assert pretraining_cases(inner_store(made, 0), 0) == list("abce")


def test_too_few_people_to_choose_on_are_told(store):
    few = Store(store).with_splits([{"train": list("abc"), "validation": list("gh")}])
    with pytest.raises(InputError, match="too few training people to choose"):
        inner_store(few, 0)


def test_a_run_that_diverged_counts_as_masks_without_foreground(store):
    made = Store(store)
    counts = empty_counts(made, 0)
    labels = made.labels("g", (slice(0, 2), slice(0, 18), slice(0, 20)))
    expected = confusion(np.zeros_like(labels), labels, [1, 2, 3])
    np.testing.assert_array_equal(counts["g"].array(), expected.array())
    result = {"counts": {name: count.array().tolist() for name, count in counts.items()}}
    assert mean_dice(result) == 0.0


def test_who_starts_from_a_run_that_diverged_diverged_too(store, tmp_path, monkeypatch):
    def diverges(*_):
        raise DivergedError("20 steps in a row")

    monkeypatch.setattr(module, "pretrain", diverges)
    first = Job(tmp_path / "first", CONFIG, 0, restores=True)
    job = Job(tmp_path / "job", CONFIG, 0, start=first)
    for _ in range(2):
        assert module._attempt(job, Store(store), False) is not None
    result = json.loads(job.result.read_text())
    assert result["diverged"] == f"{first.folder} diverged"
    assert mean_dice(result) == 0.0
    # What it had reached before does not count.
    assert time_to_target({**result, "curve": [[10, 1.0, 0.9]]}, 0.5) is None


def test_a_study_killed_in_its_first_moment_goes_on(store, tmp_path):
    out = tmp_path / "study"
    out.mkdir()
    (out / ".study.json.partial").write_text("{")
    module._open(STUDY, Store(store), out, resume=True)
    module._open(STUDY, Store(store), out, resume=True)
    assert json.loads((out / "study.json").read_text())["study"]["name"] == "trial"


def test_a_run_done_by_another_process_meanwhile_is_not_done_again(store, tmp_path, monkeypatch):
    job = Job(tmp_path / "run", CONFIG, 0)
    job.folder.mkdir()
    job.result.write_text("{}")
    monkeypatch.setattr(module, "_do", lambda *_: pytest.fail("done twice"))
    assert module._attempt(job, Store(store), False) is None


def test_every_study_of_the_repository_reads_and_compares_arms():
    files = sorted((Path(__file__).parents[1] / "configs" / "studies").glob("*.py"))
    assert {path.stem for path in files} >= {"efficiency", "labels", "baselines", "paper"}
    for path in files:
        asked = read_study_file(path)
        assert asked.name == path.stem
        assert any(arm.baseline for arm in asked.arms)
        # Arms that are compared see the same cases and patches, in batches of any size.
        by_name = {arm.name: arm.config for arm in asked.arms}
        for arm in asked.arms:
            assert _seen(arm.config) == _seen(by_name[arm.baseline or arm.name])


def _seen(config):
    course = config.train
    patches = course.max_steps * course.batch_size
    return config.patches, patches, replace(course, max_steps=1, batch_size=1, accumulate=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("study = 1", "sets no study"),
        ("1 / 0", "ZeroDivisionError"),
        ("study = Study('n', 't', (Arm('a', C), Arm('a', C)))", "two arms are called a"),
        ("study = Study('n', 't', (Arm('a', C, baseline='b'),))", "has the baseline b"),
        ("study = Study('n', 't', (Arm('../a', C),))", "arms.0.name"),
        ("study = Study('n', 't', (Arm('a', C, pretrain=C, teacher='a'),))", "the teacher a"),
        ("study = Study('n', 't', (Arm('a', C), Arm('b', C, teacher='a')))", "no pretrain"),
        ("study = Study('n', 't', (Arm('a', C, phantoms=3),))", "has phantoms, but no pretrain"),
        ("study = Study('n', 't', (Arm('a', C),), seeds=(1, 1))", "expected each once"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(tmp_path, text, said):
    path = tmp_path / "study.py"
    path.write_text(f"from penn_jax.config import Arm, Config, Study\nC = Config()\n{text}\n")
    with pytest.raises(InputError, match=said):
        read_study_file(path)
