"""What starts a run elsewhere: linted, checked against the schemas, and run with stand-ins."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from kill_and_resume import CONFIG, make_job, outcome
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from penn_jax.cli import EXIT_DIVERGED, EXIT_STOPPED
from penn_jax.config_file import overridden, read_config_file
from penn_jax.options import EXIT_INPUT, build_parser

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.glob("*.sbatch"), ROOT / ".ci" / "run"])
TOOLS = Path(sys.executable).parent
"""Where the test extra puts ``penn``, ``shellcheck`` and ``hadolint``."""


def _run(*command, env=None, **options):
    return subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def _stub(folder: Path, name: str, script: str) -> None:
    """An executable that stands for a real one while ``folder`` leads the search path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)


def _first_on_path(*folders: Path) -> dict[str, str]:
    return {"PATH": os.pathsep.join([*map(str, folders), os.environ["PATH"]])}


# ---- linters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    found = _run(TOOLS / "shellcheck", "--enable=quote-safe-variables", "--shell=bash", script)
    assert found.returncode == 0, found.stdout + found.stderr


def test_hadolint_finds_nothing():
    found = _run(TOOLS / "hadolint", LAUNCH / "Dockerfile")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch", "tpu_vm.sh"])
def test_a_script_without_arguments_says_how_it_is_called(name):
    said = _run("bash", LAUNCH / name)
    assert said.returncode == 2
    assert f"launch/{name} " in said.stderr
    assert "set -euo pipefail" not in said.stderr
    assert "shellcheck" not in said.stderr


def test_the_readme_speaks_of_every_file_and_of_no_other():
    readme = (LAUNCH / "README.md").read_text(encoding="utf-8")
    there = {path.name for path in LAUNCH.iterdir() if path.is_file()} - {"README.md"}
    assert set(re.findall(r"\]\(([^)/]+)\)", readme)) == there
    for link in re.findall(r"\]\((\.\./[^)#]+)", readme):
        assert (LAUNCH / link).exists(), link


# ---- the image ---------------------------------------------------------------------------------


def test_the_image_is_built_from_what_is_there():
    lines = (LAUNCH / "Dockerfile").read_text(encoding="utf-8").splitlines()
    steps = [line.split() for line in lines if line and not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    copied = [name for step in steps if step[0] == "COPY" for name in step[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    # Setuptools refuses to build without the files that pyproject.toml names.
    assert {"penn_jax", "pyproject.toml", project["readme"], *project["license-files"]} <= {*copied}
    (extra,) = [step[1].removeprefix("EXTRA=") for step in steps if step[0] == "ARG"]
    assert extra in project["optional-dependencies"]
    base = next(step[1] for step in steps if step[0] == "FROM")
    version = re.fullmatch(r"python:3\.(\d+)-slim", base)
    lowest = re.fullmatch(r">=3\.(\d+)", project["requires-python"])
    assert version is not None
    assert lowest is not None
    assert int(version[1]) >= int(lowest[1])
    # As a list: of a shell's child SIGTERM would not be heard.
    (entry,) = [" ".join(step[1:]) for step in steps if step[0] == "ENTRYPOINT"]
    assert json.loads(entry)[0] in project["scripts"]


# ---- Kubernetes --------------------------------------------------------------------------------
# Fields, types and limits of what gke_jobset.yaml uses, written down by hand from JobSet's
# CustomResourceDefinition (jobset.x-k8s.io/v1alpha2, July 2026) and its webhook, and for the parts
# that it takes from Kubernetes from the batch/v1 and core/v1 APIs.


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


_Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
_Number = Annotated[int, Field(ge=0, lt=2**31)]


class _Metadata(_Part):
    name: _Name
    annotations: dict[str, str]


class _FailureRule(_Part):
    name: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    action: Literal[
        "FailJobSet",
        "RestartJobSet",
        "RestartJobSetAndIgnoreMaxRestarts",
        "RestartJob",
        "RestartJobAndIgnoreMaxRestarts",
    ]
    onJobFailureReasons: list[
        Literal[
            "BackoffLimitExceeded",
            "DeadlineExceeded",
            "FailedIndexes",
            "MaxFailedIndexesExceeded",
            "PodFailurePolicy",
        ]
    ]


class _FailurePolicy(_Part):
    maxRestarts: _Number
    rules: list[_FailureRule]


class _ExitCodes(_Part):
    operator: Literal["In", "NotIn"]
    values: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=255)]


class _PodFailureRule(_Part):
    action: Literal["FailJob", "FailIndex", "Ignore", "Count"]
    onExitCodes: _ExitCodes


class _PodFailurePolicy(_Part):
    rules: Annotated[list[_PodFailureRule], Field(max_length=20)]


class _Resources(_Part):
    limits: dict[str, _Number]


class _Container(_Part):
    name: _Name
    image: str
    args: list[str]
    resources: _Resources


class _PodSpec(_Part):
    # A policy on exit codes is allowed with Never alone.
    restartPolicy: Literal["Never"]
    terminationGracePeriodSeconds: _Number
    serviceAccountName: _Name
    nodeSelector: dict[str, str]
    containers: Annotated[list[_Container], Field(min_length=1)]


class _PodTemplate(_Part):
    spec: _PodSpec


class _JobSpec(_Part):
    parallelism: _Number
    completions: _Number
    backoffLimit: _Number
    podFailurePolicy: _PodFailurePolicy
    template: _PodTemplate


class _JobTemplate(_Part):
    spec: _JobSpec


class _ReplicatedJob(_Part):
    name: _Name
    replicas: _Number = 1
    template: _JobTemplate


class _JobSetSpec(_Part):
    failurePolicy: _FailurePolicy
    replicatedJobs: Annotated[list[_ReplicatedJob], Field(min_length=1)]


class _JobSet(_Part):
    apiVersion: Literal["jobset.x-k8s.io/v1alpha2"]
    kind: Literal["JobSet"]
    metadata: _Metadata
    spec: _JobSetSpec


def _jobset():
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text(encoding="utf-8"))


def test_the_jobset_fits_its_schema():
    jobset = _jobset()
    job = _JobSet.model_validate(jobset).spec.replicatedJobs[0].template.spec
    pod = job.template.spec
    chips = prod(map(int, pod.nodeSelector["cloud.google.com/gke-tpu-topology"].split("x")))
    assert job.parallelism == job.completions
    assert job.parallelism * pod.containers[0].resources.limits["google.com/tpu"] == chips
    assert job.podFailurePolicy.rules[0].onExitCodes.values == [EXIT_INPUT, EXIT_DIVERGED]
    jobset["spec"]["failurePolicy"]["rules"][0]["name"] = "with-a-hyphen"
    with pytest.raises(ValidationError, match="should match pattern"):
        _JobSet.model_validate(jobset)


def test_the_jobset_calls_penn_as_penn_is_called():
    job = _JobSet.model_validate(_jobset()).spec.replicatedJobs[0].template.spec
    pod = job.template.spec
    options, rest = build_parser().parse_known_args(pod.containers[0].args)
    config = overridden(read_config_file(ROOT / options.config), rest)
    assert options.resume
    chips = job.parallelism * pod.containers[0].resources.limits["google.com/tpu"]
    assert config.train.batch_size % chips == 0


# ---- processes on this machine -----------------------------------------------------------------

SAVES_ON_SIGTERM = 'sleep 60 & trap "kill $!; sleep 0.5; echo saved; exit 75" TERM\n'
"""Begins a stand-in that ends with ``wait`` and then as penn does: not at once, with code 75."""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Config and store of a short run, as arguments of ``penn train``."""
    train = replace(CONFIG.train, max_steps=24, validate_every=0, checkpoint_every=8)
    command = make_job(tmp_path_factory.mktemp("job"), replace(CONFIG, train=train))
    return command[command.index("train") + 1 : command.index("--resume")]


@pytest.fixture
def one_device(monkeypatch):
    """Each process brings the one device of a machine's CPU, not the four of the tests."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)


@pytest.mark.slow
def test_two_processes_train_as_one(job, one_device, tmp_path):
    path = _first_on_path(TOOLS)
    for processes in ("1", "2"):
        out = tmp_path / processes
        done = _run("bash", LAUNCH / "local.sh", processes, *job, "--out", out, env=path)
        assert done.returncode == 0, done.stderr
    one, two = outcome(tmp_path / "1"), outcome(tmp_path / "2")
    assert two["step"] == "24"
    assert two["places"] == one["places"]
    assert [point["loss"] for point in two["log"] if "loss" in point] == pytest.approx(
        [point["loss"] for point in one["log"] if "loss" in point], rel=1e-3
    )


def test_signals_reach_every_process_and_the_exit_code_comes_back(tmp_path):
    tells = 'printf "%s\\n" "$@" > "$SEEN/${!#}"\nwait'
    _stub(tmp_path / "bin", "penn", SAVES_ON_SIGTERM + tells)
    seen = tmp_path / "seen"
    seen.mkdir()
    command = ["bash", LAUNCH / "local.sh", "3", "a config.py", "--out", "a run"]
    environment = {**os.environ, **_first_on_path(tmp_path / "bin"), "SEEN": str(seen)}
    with subprocess.Popen(command, env=environment) as process:
        deadline = time.monotonic() + 30
        while len(list(seen.iterdir())) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == EXIT_STOPPED
    told = [(seen / str(number)).read_text().splitlines() for number in range(3)]
    for number, arguments in enumerate(told):
        assert arguments[:4] == ["train", "a config.py", "--out", "a run"]
        flags = dict(zip(arguments[4::2], arguments[5::2], strict=True))
        assert flags["--coordinator"] == told[0][5]
        assert re.fullmatch(r"127\.0\.0\.1:\d+", flags.pop("--coordinator"))
        assert flags == {"--processes": "3", "--process": str(number)}


@pytest.mark.parametrize(
    ("named", "code", "expected"),
    [(None, 0, {"0", "1"}), ("2,3", 0, {"2", "3"}), ("", 0, {""}), ("2", 2, set())],
)
def test_each_process_gets_a_gpu_of_those_that_are_named(named, code, expected, tmp_path):
    _stub(tmp_path / "bin", "penn", 'echo "sees=$CUDA_VISIBLE_DEVICES"')
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    environment |= _first_on_path(tmp_path / "bin")
    if named is not None:
        environment["CUDA_VISIBLE_DEVICES"] = named
    said = subprocess.run(
        ["bash", LAUNCH / "local.sh", "2", "config.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == code
    assert {line.removeprefix("sees=") for line in said.stdout.splitlines()} == expected
    assert ("2 processes, but CUDA_VISIBLE_DEVICES=2" in said.stderr) == bool(code)


# ---- TPU machines ------------------------------------------------------------------------------

GCLOUD = r"""
printf '%s\n' "$*" >> "$MACHINES/calls"
for word; do
  case $word in
    --command=*) command=${word#*=} ;;
    --worker=all) workers=(0 1) ;;
    --worker=*) workers=("${word#*=}") ;;
  esac
done
case "$4" in
  ssh) for i in "${workers[@]}"; do (cd "$MACHINES/$i" && bash -c "$command") || exit; done ;;
  scp) for i in "${workers[@]}"; do cp "$5" "$MACHINES/$i"; done ;;
esac
case "$1 $2" in "storage rsync") cp -r "$4/." "$5" ;; esac
"""
"""A gcloud whose two machines are folders; it runs there what would be run on them."""

PYTHON_OF_THE_MACHINE = r"""
case "$*" in *"uv venv"*) mkdir -p .venv/bin && cp "$MACHINES/penn" .venv/bin ;; esac
"""

PENN_OF_THE_MACHINE = f"""
[[ "$1" == --version ]] && exit
{SAVES_ON_SIGTERM}
printf '%s\\n' "$@"
wait
"""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone: install packs the commit")
def test_tpu_machines_from_create_to_delete(tmp_path):
    machines, run = tmp_path / "machines", tmp_path / "bucket" / "run"
    for folder in (machines / "0", machines / "1", run):
        folder.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    _stub(tmp_path / "bin", "gcloud", GCLOUD)
    _stub(tmp_path / "bin", "python3", PYTHON_OF_THE_MACHINE)
    _stub(machines, "penn", PENN_OF_THE_MACHINE)
    environment = {**_first_on_path(tmp_path / "bin"), "MACHINES": str(machines), "TPU_NAME": "t"}

    def tpu_vm(*arguments):
        done = _run("bash", LAUNCH / "tpu_vm.sh", *arguments, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    tpu_vm("create")
    tpu_vm("install")
    for machine in "01":
        assert (machines / machine / "penn_jax" / "pyproject.toml").exists()

    train = ["bash", LAUNCH / "tpu_vm.sh", "run", "a config.py", "--out", "gs://b/$HOME 'x'"]
    with subprocess.Popen(
        train, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        said = [following.stdout.readline().rstrip("\n") for _ in range(5)]
        assert said == ["train", "a config.py", "--out", "gs://b/$HOME 'x'", "--resume"]
        again = _run(*train, env=environment)
        assert again.returncode == 1
        assert "under way" in again.stdout
        tpu_vm("stop")
        assert following.communicate(timeout=30)[0] == "saved\n"
    assert (machines / "1" / "penn_jax" / "penn.log").read_text().endswith("saved\n")

    tpu_vm("collect", run, tmp_path / "collected")
    assert (tmp_path / "collected" / "metrics.jsonl").exists()
    tpu_vm("delete")
    calls = (machines / "calls").read_text().splitlines()
    assert calls[0] == (
        "compute tpus tpu-vm create t --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite"
    )
    assert calls[-1] == "compute tpus tpu-vm delete t --quiet"
