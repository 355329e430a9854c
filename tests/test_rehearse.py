"""The rehearsed step is the one that trains, and what is told of it can be counted by hand."""

import importlib.util
import json
import math
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from made_stores import write_store

from penn_jax import loop, rehearse
from penn_jax.cli import main
from penn_jax.compilation import (
    collectives,
    cost,
    cycles,
    largest_batch,
    lowered_step,
    memory,
    topology_devices,
)
from penn_jax.config import Config, ModelConfig, PatchConfig, TrainConfig, to_json
from penn_jax.data.store import Store
from penn_jax.model.network import Network, initialise, parameter_count
from penn_jax.optim.parallel import compile_step
from penn_jax.rehearse import parse_topology
from penn_jax.report.rehearsal import lines
from penn_jax.roofline import Collective
from penn_jax.train import train
from penn_jax.types import InputError

CONFIG = Config(
    name="small",
    patches=PatchConfig(size=(16, 16), neighbours=1),
    model=ModelConfig(stem=2, channels=(4, 8), blocks=1),
    train=TrainConfig(batch_size=8, max_steps=1),
)
WITH_LIBTPU = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("store"), np.random.default_rng(0)
    labels = np.zeros((3, 18, 20), np.uint8)
    labels[:, 5:9, 5:9] = 1
    cases = {
        name: (generator.normal(size=(3, 18, 20, 1)).astype(np.float32), labels) for name in "ab"
    }
    write_store(folder, cases, splits=[{"train": ["a", "b"], "validation": []}])
    return Store(folder)


@pytest.fixture(scope="module")
def compiled():
    return lowered_step(CONFIG, 3, 2, 8, jax.devices()).compile()


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("topology", ["cpu:4", pytest.param("v5e:2x2", marks=WITH_LIBTPU)])
def test_operations_are_those_of_a_convolution_counted_by_hand(topology, padding, monkeypatch):
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    mesh = jax.sharding.Mesh(np.array(topology_devices(topology)), ("batch",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in (("batch",), ()))

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    image = jax.ShapeDtypeStruct((2 * 4, 10, 12, 5), np.float32)  # two for each of four devices
    kernel = jax.ShapeDtypeStruct((3, 3, 5, 7), np.float32)
    compiled = jax.jit(convolve, in_shardings=(split, whole), out_shardings=split)
    # Taps of a kernel of three that meet the image, along axes of 10 and 12: all three in each of
    # the 8 and 10 places inside; with zeros around, which are not counted, two at either end more.
    taps = {"VALID": (3 * 8, 3 * 10), "SAME": (3 * 8 + 2 * 2, 3 * 10 + 2 * 2)}[padding]
    counted = cost(compiled.lower(image, kernel).compile())
    assert counted["flops"] == 2 * 2 * math.prod(taps) * 5 * 7


def test_the_rehearsed_step_is_the_one_that_trains(monkeypatch, store, tmp_path):
    texts = []

    class Seen(Exception):
        pass

    def spied(*arguments, **options):
        real = compile_step(*arguments, **options)

        def ahead(state, batch):
            texts.append(real.step.lower(state, batch, np.float32(0)).as_text())
            raise Seen

        return real._replace(ahead=ahead)

    monkeypatch.setattr(loop, "compile_step", spied)
    with pytest.raises(Seen):
        train(CONFIG, store, tmp_path / "run", progress=False)
    classes = len(store.manifest["labels"])
    rehearsed = lowered_step(CONFIG, 3, classes, 8, jax.devices())
    assert _functions(rehearsed.as_text()) == _functions(texts[0])


def _functions(program):
    """Those of a program in text, whatever numbers tell equal ones apart."""
    return set(re.sub(r"(@\w+?)_\d+\b", r"\1", program).split("func.func "))


def test_memory_holds_the_state_and_a_share_of_the_batch(compiled):
    variables = initialise(Network(CONFIG.model, 2), jax.random.key(0), 3, 2)
    weights = parameter_count(variables)
    statistics = sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"]))
    # Float32: weights, momentum and average, statistics and their average. A patch: 16 × 16 × 3
    # float32, a byte a label, an int32; two of the eight are on each of four devices.
    state = 4 * (3 * weights + 2 * statistics)
    share = 2 * (16 * 16 * (4 * 3 + 1) + 4)
    held = memory(compiled)
    assert 0 <= held["arguments"] - state - share < 100  # counts, progress: a few numbers
    assert state <= held["reused"] <= held["output"]
    assert held["total"] >= held["arguments"] + held["temporaries"]


def test_gradients_are_summed_over_the_devices(compiled):
    found = {each.kind: each for each in collectives(compiled.as_text(), 4)}
    variables = initialise(Network(CONFIG.model, 2), jax.random.key(0), 3, 2)
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"].size >= 4 * parameter_count(variables)
    assert found["all-reduce"].size < 8 * parameter_count(variables)


def test_collectives_in_the_text_of_a_program():
    # Bytes by hand: 2·3·4 + 5·2; 8·4; the gathered 16·4 of an operand of 4·4; a quarter of 4·7·1.
    program = """
      %all-reduce.1 = (f32[2,3]{1,0:T(8,128)}, /*index=1*/bf16[5]{0}) all-reduce(%a, %b)
      %all-reduce-start.2 = f32[8]{0} all-reduce-start(%c), channel_id=2
      %done = f32[8]{0} all-reduce-done(%all-reduce-start.2)
      %all-gather-start = (f32[4]{0}, f32[16]{0}) all-gather-start(%d), dimensions={0}
      %scatter = u8[7]{0:T(128)S(1)} reduce-scatter(%e), dimensions={0}
      %fusion = f32[100]{0} fusion(%all-reduce.1), kind=kLoop, calls=%all-reduce-fused
    """
    assert collectives(program, 4) == [
        Collective("all-gather", 1, 64),
        Collective("all-reduce", 2, 24 + 10 + 32),
        Collective("reduce-scatter", 1, 28),
    ]


def test_cycles_in_the_text_of_a_program():
    program = """HloModule step
%fused (a: f32[]) -> f32[] {
  %b = f32[] add(%a, %a)
}
%few (a: f32[]) -> f32[] {
  %c = f32[] fusion(%a), backend_config={"window_config":{"estimated_cycles":"10"}}
}
%many (a: f32[]) -> f32[] {
  %d = f32[] fusion(%a), backend_config={"window_config":{"estimated_cycles":"30"}}
}
ENTRY %main (a: f32[]) -> f32[] {
  %e = f32[] fusion(%a), calls=%fused, backend_config={"window_config":{"estimated_cycles":"500"}}
  ROOT %f = f32[] conditional(%p, %e, %e), branch_computations={%few, %many}
}
"""
    assert cycles(program) == 530
    assert cycles("ENTRY %main {\n}\n") is None  # a CPU's


ANSWER = {
    # By hand for a v5e: 1 ms of operations, 2 ms of traffic, 4 ms of cycles; 4 × 4 chips move
    # 15/16 of 9 MB twice at 90 GB/s, 0.1875 ms, and 3 times wait 2 × 6 µs.
    **{"devices": 16, "kind": "TPU v5 lite", "versions": {"jax": "1", "libtpu": None}},
    **{"refusal": "", "flops": 197e9, "bytes": 1.6e9, "cycles": 6e6},
    "memory": {
        **{"arguments": 2**29, "temporaries": 2**30, "output": 2**28, "reused": 2**28},
        **{"program": 0, "total": 3 * 2**29},
    },
    "collectives": [{"kind": "all-reduce", "count": 3, "size": 9_000_000}],
    "largest": {"fits": 64, "refused": 67, "compilations": 5},
}


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(rehearse.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(rehearse, "_answer", lambda *_: ANSWER)
    return rehearse.rehearse(CONFIG, "v5e:4x4")


def test_what_is_concluded_on_paper(told):
    seconds = {"operations": 1e-3, "memory": 2e-3, "compiler": 4e-3}
    ring = 2 * 15 / 16 * 9e6 / 9e10 + 3 * 2 * 6e-6
    expected = {**seconds, "collectives": ring, "step": 2e-3 + ring}
    assert told["seconds"] == pytest.approx(expected, rel=1e-12)
    assert told["batch"] == 16 * 8
    (sixteen,) = (row for row in told["weak_scaling"]["compiler"] if row["devices"] == 16)
    assert sixteen["exposed"] == pytest.approx(4e-3 / (4e-3 + ring), rel=1e-12)
    json.dumps(told, allow_nan=False)


def test_a_person_reads_figures_and_assumptions(told):
    text = "\n".join(lines(told))
    for words in (
        "small on v5e:4x4: 16 devices (TPU v5 lite), 8 patches each of 16×16 voxels, 3 channels",
        "1.50 of 16.0 GiB",
        "2.22 ms",
        "bound by memory",
        "64 patches a device fit, 67 do not (found by 5 compilations)",
        "all-reduce: 3, 9.00 MB in all",
        "nothing has run",
        "197 TFLOP/s",
        "45 GB/s a link",
    ):
        assert words in text
    refused = {**told, "refusal": "Used 20 of 16 GiB", "weak_scaling": None, "largest": None}
    del refused["flops"]
    assert "does not fit       Used 20 of 16 GiB" in "\n".join(lines(refused))


@given(
    start=st.integers(1, 64),
    fixed=st.integers(0, 10**6),
    each=st.integers(1, 10**5),
    capacity=st.integers(1, 10**8),
)
def test_the_largest_batch_is_bracketed(start, fixed, each, capacity):
    asked = []

    def needed(patches):
        asked.append(patches)
        return fixed + each * patches if patches < 5000 else None

    largest = largest_batch(needed, capacity, start)
    true = min(max(0, (capacity - fixed) // each), 4999)
    assert largest.compilations == len(asked) == len(set(asked)) <= 12
    assert largest.fits <= true
    if largest.refused is not None:
        assert true < largest.refused
    if largest.compilations < 12:
        assert largest.refused - largest.fits <= max(1, largest.fits // 16)


def test_a_line_needs_few_compilations():
    # 100 + 7 n ≤ 10,000 up to n = 1414: two for the line, one on it, one beyond.
    assert largest_batch(lambda n: 100 + 7 * n, 10_000, 8) == (1414, 1502, 4)


def test_a_compiler_that_recomputes_is_followed_to_where_it_gives_up():
    # As libtpu did with configs/spine_t1.py on v5e:16x16, in round figures: 11 MB a patch, then
    # ever the same 15 of 16 GB, up to 1,600 patches.
    asked = []

    def needed(patches):
        asked.append(patches)
        return min(80 + 11 * patches, 15_000) if patches <= 1600 else None

    largest = largest_batch(needed, 16_000, 8)
    assert 1500 <= largest.fits <= 1600 < largest.refused <= 1700
    assert max(asked) < 3000
    assert len(asked) <= 8


@pytest.mark.parametrize(
    "name",
    ["v5e", "v5e:", "v5e:4", "v5e:4x4x4", "v5p:4x4", "v9:4x4", "cpu:0", "cpu:2x2", "v5e:0x4"],
)
def test_unknown_topologies_are_named(name):
    with pytest.raises(InputError, match=rf"--topology: {name!r} is not known, expected v4, v5e"):
        parse_topology(name)


def test_a_slice_larger_than_there_are_is_refused():
    with pytest.raises(InputError, match="v5e:16x32 is too large, expected up to 256 chips"):
        parse_topology("v5e:16x32")


@WITH_LIBTPU
@pytest.mark.parametrize(
    ("name", "devices"), [("v4:2x2x2", 8), ("v5e:1x1", 1), ("v5p:2x2x1", 4), ("v6e:2x4", 8)]
)
def test_a_chip_is_a_device(name, devices, monkeypatch):
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    assert len(topology_devices(name)) == devices


def test_a_missing_compiler_is_told_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(rehearse.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(InputError, match=r"pip install 'penn-jax\[tpu\]'"):
        parse_topology("v5e:4x4")
    assert parse_topology("cpu:8").grid == (8,)


@pytest.mark.parametrize(
    ("changed", "given", "said"),
    [
        ({"patches": PatchConfig(size=(16, 18))}, {}, "multiples of 4"),
        ({"train": TrainConfig(parallel="pmap")}, {}, "--train.parallel"),
        ({}, {"classes": 1}, "--classes: 1, expected at least 2"),
        ({}, {"patches": 0}, "--patches-per-device: 0"),
    ],
)
def test_what_cannot_be_compiled_is_refused_at_once(changed, given, said):
    with pytest.raises(InputError, match=said):
        rehearse.rehearse(replace(CONFIG, **changed), "cpu:1", **given)


def test_the_command_on_cpu_devices(capsys, store, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_json(CONFIG)))
    given = ["rehearse", str(path), "--topology", "cpu:2", "--data", str(store.path), "--json"]
    assert main([*given, "--patches-per-device", "4", "--no-search"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["devices"], found["patches"], found["batch"]) == (2, 4, 8)
    assert found["patch"] == [16, 16, 3]
    assert found["flops"] > 0
    assert found["seconds"] is None
    assert found["largest"] is None
    assert [each["kind"] for each in found["collectives"]] == ["all-reduce"]


@WITH_LIBTPU
def test_the_command_on_a_tpu_topology(capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_json(CONFIG)))
    assert main(["rehearse", str(path), "--topology", "v5e:2x2", "--no-search"]) == 0
    said = capsys.readouterr().out
    assert "small on v5e:2x2: 4 devices" in said
    assert "all-reduce" in said
    assert "nothing has run" in said
    assert main(["rehearse", str(path), "--topology", "v5e:3x5"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
