"""The rehearsed step is the one that trains, and what is told of it can be counted by hand."""

import importlib.util
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from made_stores import write_store

from penn_jax import compilation, loop, rehearse
from penn_jax.cli import main
from penn_jax.compilation import (
    cost,
    largest_batch,
    lowered_step,
    lowered_update,
    memory,
    repeated,
    topology_devices,
)
from penn_jax.config import Config, ModelConfig, PatchConfig, TrainConfig, to_json
from penn_jax.data.store import Store
from penn_jax.model.network import Network, initialise, parameter_count
from penn_jax.optim.parallel import compile_step
from penn_jax.program import collectives, loops
from penn_jax.rehearse import parse_topology
from penn_jax.report.rehearsal import lines
from penn_jax.train import objective_builder, train
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


def _in_parts(config, parts):
    return replace(config, train=replace(config.train, accumulate=parts))


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


@pytest.mark.parametrize("parts", [1, 2])
def test_the_rehearsed_step_is_the_one_that_trains(monkeypatch, store, tmp_path, parts):
    config, texts = _in_parts(CONFIG, parts), []

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
        train(config, store, tmp_path / "run", progress=False)
    classes = len(store.manifest["labels"])
    rehearsed = lowered_step(config, 3, classes, 8, jax.devices())
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


@pytest.mark.parametrize("topology", ["cpu:4", pytest.param("v5e:2x2", marks=WITH_LIBTPU)])
def test_a_batch_in_parts_costs_a_second_forward_pass(topology, monkeypatch):
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices, parts = topology_devices(topology), 4
    # Narrow networks would be all augmentation and update; group norm knows nothing of parts.
    model = ModelConfig(stem=2, channels=(16, 32), blocks=1, norm="group")
    config = replace(CONFIG, model=model)
    whole = lowered_step(config, 3, 2, 32, devices).compile()
    in_parts = lowered_step(_in_parts(config, parts), 3, 2, 32, devices).compile()
    outside = cost(lowered_update(config, 3, 2, devices).compile())
    assert parts in loops(in_parts.as_text())

    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    split, everywhere = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in (("batch",), ()))
    objective = objective_builder(config, 2, jax.random.key(0))(None)
    variables = jax.eval_shape(
        lambda: initialise(Network(config.model, 2), jax.random.key(0), 3, 2)["params"]
    )
    batch = {
        "image": jax.ShapeDtypeStruct((32, 16, 16, 3), np.float32),
        "label": jax.ShapeDtypeStruct((32, 16, 16), np.uint8),
        "index": jax.ShapeDtypeStruct((32,), np.int32),
    }
    forward = jax.jit(
        lambda params, batch: objective(params, {}, batch, lambda tree: tree)[0],
        in_shardings=(everywhere, split),
    )
    once_more = cost(forward.lower(variables, batch).compile())["flops"]
    found = repeated(cost(in_parts), outside, parts)["flops"]
    assert found == pytest.approx(cost(whole)["flops"] + once_more, rel=0.05)
    if topology == "cpu:4":  # a TPU pads so small a patch to many times its size
        assert memory(in_parts)["temporaries"] < memory(whole)["temporaries"] / 2


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
    "largest": {"fits": 64, "refused": 67, "recomputed": False, "compilations": 5},
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
    assert "8 patches each in 4 parts of 16×16" in "\n".join(lines({**told, "accumulate": 4}))
    recomputed = {**told["largest"], "refused": None, "recomputed": True}
    assert "recomputes to save memory" in "\n".join(lines({**told, "largest": recomputed}))
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
    assert largest_batch(lambda n: 100 + 7 * n, 10_000, 8) == (1414, 1502, False, 4)


@pytest.mark.parametrize(
    "found",
    [
        # GiB that libtpu 0.0.42.1 asked for, spine_t1 and tumour_t1gd on v5e chips (docs).
        {8: 0.2295, 557: 7.677, 1170: 14.036, 1359: 13.859},
        {4: 0.2591, 247: 2.290, 1889: 14.868, 2036: 14.637},
    ],
)
def test_a_compiler_that_recomputes_ends_the_search(found):
    asked = []

    def needed(patches):
        asked.append(min(found, key=lambda known: abs(known - patches)))
        assert asked[-1] == pytest.approx(patches, rel=0.02)  # figures rounded, so are the steps
        return int(found[asked[-1]] * 2**30)

    largest = largest_batch(needed, 16 * 2**30, min(found))
    assert asked == list(found)
    assert largest[1:] == (None, True, 4)
    assert largest.fits == pytest.approx(max(found), rel=0.02)


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
        ({"train": TrainConfig(accumulate=4)}, {"patches": 6}, "6, expected a multiple of the 4"),
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


def test_the_command_with_a_batch_in_parts(capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_json(CONFIG)))
    given = ["rehearse", str(path), "--topology", "cpu:2", "--json"]
    assert main([*given, "--train.accumulate", "2", "--no-search"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["accumulate"], found["patches"], found["batch"]) == (2, 8, 16)
    assert any("2 parts of a batch" in each for each in found["assumptions"])


def test_the_largest_batch_in_parts_is_one_that_can_be_parted(monkeypatch):
    asked = []

    def lowered(config, channels, classes, batch, devices):
        asked.append(batch // len(devices))
        return SimpleNamespace(compile=lambda: SimpleNamespace(as_text=str, batch=batch))

    monkeypatch.setattr(compilation, "lowered_step", lowered)
    monkeypatch.setattr(compilation, "cost", lambda compiled: {})
    monkeypatch.setattr(compilation, "memory", lambda compiled: {"total": 1000 * compiled.batch})
    request = {
        **{"config": to_json(_in_parts(CONFIG, 4)), "topology": "cpu:4", "channels": 3},
        **{"classes": 2, "patches": 8, "capacity": 4 * 150_000},
    }
    largest = compilation.rehearsed(request, lambda line: None)["largest"]
    # At 1000 bytes a patch of four devices 150 fit, in whole parts 148; a sixteenth of the 37 of a
    # part is 2.
    assert (largest["fits"], largest["refused"]) == (148, 156)
    assert len(asked) == largest["compilations"]
    assert all(patches % 4 == 0 for patches in asked)


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
