"""The fuzzer's targets on a bounded number of inputs, which hypothesis draws and shrinks."""

import random
import struct
from pathlib import Path

import fuzz
import numpy as np
import pytest
from fuzz import Target, check, execute, targets
from fuzz_inputs import compress, mutate_json, mutate_nifti, nifti_seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from penn_jax.data.volume import read_image, read_labels
from penn_jax.types import InputError

NAMES = ("nifti", "nifti.gz", "dataset", "splits", "manifest", "config", "environment")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return targets(tmp_path_factory.mktemp("fuzz"))


def test_every_target_is_tested(made):
    assert set(made) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_sound(name, made):
    for seed in made[name].seeds:
        content = compress(random.Random(0), seed) if name == "nifti.gz" else seed
        assert check(made[name].use, content) == "sound"


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150)
@given(rng=st.randoms(use_true_random=False), rounds=st.integers(1, 3))
def test_a_mutation_is_read_or_refused_in_one_line(name, rng, rounds, made):
    target = made[name]
    content = rng.choice(target.seeds)
    for _ in range(rounds):
        content = target.mutate(rng, content, rng.choice(target.seeds))
    check(target.use, compress(rng, content) if name == "nifti.gz" else content)


@settings(max_examples=150)
@given(content=st.binary(max_size=600), name=st.sampled_from(NAMES))
def test_bytes_of_no_format_are_refused(content, name, made):
    # Two bytes can be a whole config: "{}". No other target has a file so short.
    kind = check(made[name].use, content)
    assert kind != "sound" or (name == "config" and content.strip() == b"{}")


def test_mutations_follow_from_the_seed_and_reach_both_ends():
    seed = nifti_seeds()[0]
    several = [mutate_nifti(random.Random(number), seed, seed) for number in range(200)]
    assert several == [mutate_nifti(random.Random(number), seed, seed) for number in range(200)]
    assert len(set(several)) > 150
    texts = [mutate_json(random.Random(number), b'{"a": [1, "b"]}', b"{}") for number in range(200)]
    assert len(set(texts)) > 100


def test_every_header_field_is_reached():
    seed = nifti_seeds()[0]
    touched = np.zeros(len(seed), bool)
    for number in range(3000):
        changed = mutate_nifti(random.Random(number), seed, seed)
        if len(changed) == len(seed):
            touched |= np.frombuffer(changed, np.uint8) != np.frombuffer(seed, np.uint8)
    assert touched[:348].mean() > 0.9  # the NIfTI-1 header: 348 bytes


@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (lambda content: None, "sound"),
        (lambda content: (_ for _ in ()).throw(InputError("x", "is 3 mm", "y", "z")), "is … mm"),
    ],
)
def test_allowed_outcomes_are_no_findings(use, kind):
    found, error = execute(Target([], mutate_json, use), b"")
    assert (found, error) == (kind, None)


def _raise(error):
    raise error


@pytest.mark.parametrize(
    "use",
    [
        lambda content: _raise(KeyError("a")),
        lambda content: _raise(RecursionError()),
        lambda content: np.float32(1e38) * np.float32(10),  # a warning, here an error
        lambda content: np.ones(80 << 20, np.uint8),  # 80 MiB, where 64 are allowed
    ],
    ids=["exception", "recursion", "warning", "memory"],
)
def test_anything_else_is_a_finding(use, monkeypatch):
    monkeypatch.setattr(fuzz, "MEMORY", 64 << 20)
    _, error = execute(Target([], mutate_json, use), b"")
    assert error is not None


def test_seeds_cover_what_the_readers_take(tmp_path: Path):
    path, kinds = tmp_path / "scan.nii", set()
    for seed in nifti_seeds():
        path.write_bytes(seed)
        kinds.add((seed[:4], read_image([path]).orientation))
        # Expected: what the seeds are made of, 0 to 3, or that by 2 + 1 or 3 where it is scaled.
        values = set(np.unique(read_labels(path).array).tolist())
        assert values in ({0, 1, 2, 3}, {1, 3, 5, 7}, {0, 3, 6, 9})
    # NIfTI-1 and 2, either byte order, and three orientations of the first.
    assert {start for start, _ in kinds} == {
        b"\x5c\1\0\0",
        b"\0\0\1\x5c",
        b"\x1c\2\0\0",
        b"\0\0\2\x1c",
    }
    assert len(kinds) >= 5


def _big_endian_axes(count: int) -> bytes:
    seed = next(bytearray(seed) for seed in nifti_seeds() if seed[:4] == b"\0\0\1\x5c")
    seed[40:42] = struct.pack(">h", count)  # dim[0]
    return bytes(seed)


def _qform_code(code: int) -> bytes:
    seed = bytearray(nifti_seeds()[0])
    seed[252:254] = struct.pack("<h", code)
    return bytes(seed)


def _signalling_nan() -> bytes:
    seed = bytearray(next(seed for seed in nifti_seeds() if seed[70:72] == b"\x10\0"))  # float32
    seed[352:356] = struct.pack("<I", 0x7F800001)  # the first voxel
    return bytes(seed)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (_big_endian_axes(32767), "its shape is ()"),
        (_qform_code(255), "sound"),
        (_signalling_nan(), "label … is not a whole number"),
    ],
    ids=["a warning of overflow", "a line in the log", "a warning of a signalling NaN"],
)
def test_what_was_once_a_finding(content, kind, made, caplog):
    assert check(made["nifti"].use, content) == kind
    assert caplog.text == ""
