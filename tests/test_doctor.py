"""``penn doctor`` tells what is there and what is missing, and never fails itself."""

import json
import tomllib
from pathlib import Path

import jax
import pytest

from penn_jax import doctor
from penn_jax.cli import main
from penn_jax.doctor import PARTS, diagnose, lines

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def test_it_prints_for_a_person_and_for_a_program(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert f"jax {jax.__version__}" in said
    assert "cpu:0" in said
    assert "GiB free" in said
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["jax"] == jax.__version__
    assert len(found["devices"]) == jax.device_count()
    assert set(found["parts"]) == set(PARTS)
    assert all(free > 0 for free in found["free_disk"].values())


def test_every_part_is_an_extra_that_brings_its_modules():
    extras = PROJECT["optional-dependencies"]
    for name, part in PARTS.items():
        assert all(any(line.startswith(module) for line in extras[name]) for module in part.modules)
    assert set(extras) - set(PARTS) == {"test", "browser", "docs", "cuda", "tpu"} & set(extras)


def test_a_missing_part_is_told_with_the_command_that_installs_it(monkeypatch):
    real = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util,
        "find_spec",
        lambda name: None if name == "pydicom" else real(name),
    )
    found = diagnose()
    assert not found["parts"]["dicom"]["installed"]
    assert "missing: pip install 'penn-jax[dicom]'" in "\n".join(lines(found))


def test_faults_are_told_not_raised(monkeypatch, tmp_path):
    def no_devices():
        raise RuntimeError("Unable to initialize\nbackend 'cuda'")

    monkeypatch.setattr(doctor.jax, "devices", no_devices)
    found = diagnose()
    assert found["devices"] == []
    told = lines(found)
    assert told[told.index("devices    none") + 1].strip() == "Unable to initialize backend 'cuda'"


@pytest.mark.parametrize("there", [True, False])
def test_the_compile_cache_is_tried(tmp_path, there):
    before = jax.config.values["jax_compilation_cache_dir"]
    folder = tmp_path / "cache"
    if there:
        folder.mkdir()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    try:
        found = diagnose()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert found["compile_cache"] == {"folder": str(folder), "writable": there}
    assert ("cannot be written" in "\n".join(lines(found))) is not there


def test_a_gpu_that_jax_does_not_see_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_GPU", tmp_path)
    assert "pip install 'penn-jax[cuda]'" in "\n".join(lines(diagnose()))
