"""``penn predict`` on files: geometry, types, several models, budgets, errors."""

import errno
import gc
import os
import tempfile
import weakref
from itertools import combinations
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from scipy.ndimage import label
from scipy.spatial.transform import Rotation

from penn_jax import engine, segment
from penn_jax.components import drop_small_components
from penn_jax.config import Config, ModelConfig, PatchConfig
from penn_jax.engine import probability_forward
from penn_jax.model.network import Network, initialise
from penn_jax.predict.certainty import entropy, expected_dice, inside_probability, overlap_sums
from penn_jax.predictions import read_predictions
from penn_jax.segment import predict
from penn_jax.types import InputError

CODES = [
    a + b + c
    for a in "RLAPSI"
    for b in "RLAPSI"
    for c in "RLAPSI"
    if {frozenset("RL"), frozenset("AP"), frozenset("SI")}
    == {next(p for p in map(frozenset, ("RL", "AP", "SI")) if x in p) for x in (a, b, c)}
]
SHAPE, SPACING = (20, 24, 6), (1.0, 1.3, 4.0)


def model(
    dimensions=2, seed=0, neighbours=0, spacing=None, channels=(4, 6), labels=3, norm="batch"
):
    """Config, card and variables as ``load_model`` gives them."""
    config = Config(
        model=ModelConfig(stem=2, channels=channels, blocks=1, norm=norm),
        patches=PatchConfig(size=(16,) * dimensions, neighbours=neighbours),
    )
    names = ["background", "a", "b", "c"][:labels]
    card = {
        "channels": ["T1"],
        "labels": {name: number for number, name in enumerate(names)},
        "label_values": [0, 7, 9, 11][:labels],
        "dimensions": dimensions,
        "spacing": spacing,
        "data_hash": "0",
        "fold": 0,
        "task": "segmentation",
    }
    network = Network(config.model, labels)
    shapes = jax.eval_shape(
        lambda: initialise(network, jax.random.key(0), 1 + 2 * neighbours, dimensions)
    )
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        """As drawn before training, without compiling anything; sharper, for varied masks."""
        name = jax.tree_util.keystr(path)
        if "kernel" not in name:
            return np.full(leaf.shape, float("scale" in name or "var" in name), np.float32)
        deviation = 1.5 * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return rng.normal(0, deviation, leaf.shape).astype(np.float32)

    return config, card, jax.tree_util.tree_map_with_path(drawn, shapes)


@pytest.fixture(params=["jax", "onnxruntime"])
def by(request):
    """Each of the engines in turn."""
    return request.param


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Make folders that ``penn predict`` takes for models."""
    known = {}

    def make(name, **options):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
        known[tmp_path / name] = model(**options)
        return tmp_path / name

    monkeypatch.setattr(engine, "load_model", known.__getitem__)
    return make


def scan(shape=SHAPE, seed=0) -> np.ndarray:
    """Whole numbers of 0 to 4095, smooth enough to look like an image."""
    rng = np.random.default_rng(seed)
    x = np.stack(np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij"))
    smooth = sum(np.sin(3 * rng.normal(size=3) @ x.reshape(3, -1) + i) for i in range(4))
    noisy = smooth.reshape(shape) + rng.normal(0, 0.3, shape)
    return np.round(4095 * (noisy - noisy.min()) / np.ptp(noisy))


def save(path: Path, array, affine=None, dtype=np.int16) -> Path:
    path.parent.mkdir(exist_ok=True)
    affine = np.diag((*SPACING, 1.0)) if affine is None else affine
    nib.save(nib.Nifti1Image(array.astype(dtype), affine), path)
    return path


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize(("dimensions", "spacing"), [(2, None), (2, (1.3, 1.0)), (3, None)])
def test_every_axis_order_and_flip_gives_the_same_mask(models, tmp_path, dimensions, spacing):
    assert len(CODES) == 48
    run = models("run", dimensions=dimensions, spacing=spacing, neighbours=3 - dimensions)
    array, affine = scan(), np.diag((*SPACING, 1.0))
    affine[:3, 3] = (-3, 40, 11)
    for code in CODES:
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(code))
        turned = apply_orientation(array, turn)
        save(tmp_path / "scans" / f"{code}.nii", turned, affine @ inv_ornt_aff(turn, SHAPE))
    predict([run, tmp_path / "scans"], tmp_path / "masks", engine="jax")
    expected = read(tmp_path / "masks" / "RAS.nii.gz")
    assert set(np.unique(expected)) == {0, 7, 9}
    for code in CODES:
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(code))
        mask = nib.load(tmp_path / "masks" / f"{code}.nii.gz")
        assert "".join(nib.aff2axcodes(mask.affine)) == code
        np.testing.assert_array_equal(np.asarray(mask.dataobj), apply_orientation(expected, turn))


def test_oblique_scans_keep_every_word_of_their_geometry(models, tmp_path):
    run, rng = models("run"), np.random.default_rng(0)
    for number in range(10):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.random(rng=rng).as_matrix() @ np.diag(rng.uniform(0.5, 5, 3))
        if number % 2:
            affine[:3, 0] *= -1  # left-handed
        affine[:3, 3] = rng.uniform(-200, 200, 3)
        image = nib.Nifti1Image(scan((9 + number, 12, 10), number).astype(np.int16), affine)
        other = affine.copy()
        other[:3, 3] += 0.01
        image.set_qform(affine, code=number % 5)
        image.set_sform(other, code=(number + 1) % 5 or 1)
        image.header.set_xyzt_units("mm", "sec")
        (tmp_path / "scans").mkdir(exist_ok=True)
        nib.save(image, tmp_path / "scans" / f"{number}.nii.gz")
    predict([run, tmp_path / "scans"], tmp_path / "masks", engine="jax")
    for number in range(10):
        before, after = (
            nib.load(tmp_path / part / f"{number}.nii.gz") for part in ("scans", "masks")
        )
        assert after.shape == before.shape
        assert after.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(after.affine, before.affine)
        for form in ("get_qform", "get_sform"):
            (found, code), (expected, wanted) = (
                getattr(image, form)(coded=True) for image in (after, before)
            )
            assert code == wanted
            np.testing.assert_array_equal(found, expected)
        for word in ("pixdim", "xyzt_units", "quatern_b", "qoffset_x", "srow_x"):
            np.testing.assert_array_equal(after.header[word], before.header[word])


def test_the_type_and_scale_of_the_voxels_do_not_matter(models, tmp_path):
    run, array, folder = models("run"), scan(), tmp_path / "scans"
    affine = np.diag((*SPACING, 1.0))
    save(folder / "int16.nii", array)
    save(folder / "float64.nii", array, dtype=np.float64)
    save(folder / "unit.nii", array / 4095, dtype=np.float32)
    save(folder / "one_frame.nii", array[..., None])
    big = nib.Nifti1Image(array.astype(">i2"), affine, nib.Nifti1Header(endianness=">"))
    nib.save(big, folder / "big.nii")
    assert (folder / "big.nii").read_bytes()[:4] == b"\x00\x00\x01\x5c"
    header = bytearray((folder / "int16.nii").read_bytes())
    header[112:120] = np.array([0.25, -100], "<f4").tobytes()  # scl_slope, scl_inter
    (folder / "slope.nii").write_bytes(header)
    np.testing.assert_array_equal(nib.load(folder / "slope.nii").get_fdata(), array / 4 - 100)
    predict([run, folder], tmp_path / "masks", engine="jax")
    expected = read(tmp_path / "masks" / "int16.nii.gz")
    assert len(np.unique(expected)) == 3
    for path in folder.iterdir():
        mask = read(tmp_path / "masks" / f"{path.stem}.nii.gz")
        np.testing.assert_array_equal(mask.reshape(SHAPE), expected, err_msg=path.name)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_along_any_axis(models, tmp_path, axis):
    shape = tuple(np.insert((20, 24), axis, 1))
    path = save(tmp_path / "slice.nii", scan(shape))
    predict([models("run"), path], tmp_path / "masks", engine="jax")
    mask = read(tmp_path / "masks" / "slice.nii.gz")
    assert mask.shape == shape
    assert len(np.unique(mask)) > 1


def test_several_models_are_averaged_in_probability_space(models, tmp_path, by):
    # Of other strides, widths and neighbours, so that nothing but the classes agrees.
    runs = [
        models("one"),
        models("two", seed=1, neighbours=2),
        models("three", seed=2, channels=(4, 5, 6)),
    ]
    path = save(tmp_path / "scan.nii", scan((32, 40, 6)))
    for number, run in enumerate([[runs[0]], [runs[1]], [runs[2]], runs]):
        predict([*run, path], tmp_path / f"out{number}", probabilities=True, engine=by)
    *single, mean = (read(tmp_path / f"out{n}" / "scan_probabilities.nii.gz") for n in range(4))
    # 32 and 40 are multiples of every total stride: the models see the same frame alone.
    np.testing.assert_allclose(mean, np.mean(single, axis=0), atol=1e-6)
    mask = read(tmp_path / "out3" / "scan.nii.gz")
    np.testing.assert_array_equal(mask, np.array([0, 7, 9])[mean.argmax(-1)])


def test_models_that_do_not_agree_are_named(models, tmp_path):
    path = save(tmp_path / "scan.nii", scan())
    one, other = models("one"), models("other", labels=2)
    with pytest.raises(InputError, match=r"other: its labels are .* as in .*one"):
        predict([one, other, path], tmp_path / "masks")
    with pytest.raises(InputError, match=r"no scans, expected a model, then scans"):
        predict([one, models("third")], tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("mirror", [False, True])
def test_no_memory_budget_changes_a_mask(models, tmp_path, by, mirror):
    run = models("run", neighbours=1)
    path = save(tmp_path / "scan.nii", scan((90, 75, 3)))
    predict([run, path], tmp_path / "whole", {"mirror": mirror}, engine=by)
    # Some 100 bytes a voxel: tiles of about 3,000 voxels.
    change = {"memory_budget": 3e-4, "mirror": mirror}
    predict([run, path], tmp_path / "tiled", change, engine=by)
    np.testing.assert_array_equal(*(read(tmp_path / n / "scan.nii.gz") for n in ("whole", "tiled")))
    with pytest.raises(InputError, match=r"memory-budget: 1e-06 GiB .* at least"):
        predict([run, path], tmp_path / "none", {"memory_budget": 1e-6}, engine=by)
    assert not (tmp_path / "none").exists()


def test_values_out_of_range_are_told(models, tmp_path):
    path = save(tmp_path / "scan.nii", scan())
    with pytest.raises(InputError, match="smallest_component"):
        predict([models("run"), path], tmp_path / "masks", {"smallest_component": -1.0})


def test_small_components_are_dropped_in_mm3(models, tmp_path):
    run, path = models("run"), save(tmp_path / "scan.nii", scan())
    predict([run, path], tmp_path / "all", engine="jax")
    expected = read(tmp_path / "all" / "scan.nii.gz")
    classes = np.searchsorted([0, 7, 9], expected).astype(np.uint8)
    # More than all voxels of the rarer class together.
    smallest = float(np.prod(SPACING) * (np.bincount(classes.ravel(), minlength=3)[1:].min() + 1))
    change = {"smallest_component": smallest}
    predict([run, path], tmp_path / "large", change, engine="jax")
    found = read(tmp_path / "large" / "scan.nii.gz")
    drop_small_components(classes, SPACING, smallest)
    np.testing.assert_array_equal(found, np.array([0, 7, 9])[classes])
    assert (found != expected).any()
    assert len(np.unique(found)) < 3


def test_one_bad_scan_does_not_keep_the_others_from_being_predicted(models, tmp_path):
    run, folder = models("run"), tmp_path / "scans"
    for name in "aceg":
        save(folder / f"{name}.nii", scan(seed=ord(name)))
    (folder / "b.nii").write_bytes(b"nothing of the kind" * 100)
    colours = np.zeros(SHAPE, [(c, "u1") for c in "RGB"])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), folder / "d.nii")
    sheared = np.diag((1.0, 1.0, 1.0, 1.0))
    sheared[0, 1] = 0.3
    image = nib.Nifti1Image(scan().astype(np.int16), sheared)
    nib.save(image, folder / "f.nii")
    with pytest.raises(InputError, match=r"b\.nii.*; 2 more could not be used: .*d\.nii.*f\.nii"):
        predict([run, folder], tmp_path / "masks", engine="jax")
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == [
        *(f"{name}.nii.gz" for name in "aceg"),
        "predictions.json",
    ]
    assert list(read_predictions(tmp_path / "masks")) == list("aceg")


def test_a_scan_over_the_budget_is_named_and_the_others_are_predicted(models, tmp_path):
    run, folder = models("run", norm="group"), tmp_path / "scans"
    for name, length in [("a", 16), ("b", 64), ("c", 16)]:
        save(folder / f"{name}.nii", scan((16, length, 3)))
    # At most 176 bytes a voxel, at least 96: room for one slice of 16 × 16, none for 16 × 64.
    change = {"memory_budget": 180 * 256 / 2**30}
    with pytest.raises(InputError, match=r"b\.nii: --memory-budget: .* is less than one tile"):
        predict([run, folder], tmp_path / "masks", change, engine="jax")
    masks = sorted(path.name for path in (tmp_path / "masks").iterdir())
    assert masks == ["a.nii.gz", "c.nii.gz", "predictions.json"]


def test_no_scan_stays_while_the_next_is_read(models, tmp_path, monkeypatch):
    run, folder = models("run", norm="group"), tmp_path / "scans"
    for name, length in [("a", 16), ("b", 64), ("c", 16), ("d", 16)]:  # b exceeds the budget
        save(folder / f"{name}.nii", scan((16, length, 3)))
    (folder / "c.nii").write_bytes(b"nothing of the kind" * 100)
    monkeypatch.setattr(segment, "_READ_AHEAD", 0)
    known, read_case, alive = [], segment.read_case, []

    def reading(*arguments):
        gc.collect()
        alive.append(sum(reference() is not None for reference in known))
        case = read_case(*arguments)
        known.append(weakref.ref(case.frames))
        return case

    monkeypatch.setattr(segment, "read_case", reading)
    with pytest.raises(InputError, match=r"b\.nii.*1 more could not be used: .*c\.nii"):
        predict([run, folder], tmp_path / "o", {"memory_budget": 180 * 256 / 2**30}, engine="jax")
    assert alive == [0] * 4
    assert len(known) == 3


def test_probabilities_find_the_disk_full_before_anything_is_predicted(
    models, tmp_path, monkeypatch
):
    made, make = [], tempfile.TemporaryFile

    def temporary(**options):
        made.append(make(**options))
        return made[-1]

    def checked(*arguments):
        # Written to a disk that is full, a mapped file with holes ends the process.
        assert 512 * os.fstat(made[-1].fileno()).st_blocks >= np.prod(SHAPE) * 3 * 4
        return predict_case(*arguments)

    predict_case = segment.predict_case
    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    monkeypatch.setattr(segment, "predict_case", checked)
    run, path = models("run"), save(tmp_path / "scan.nii", scan())
    predict([run, path], tmp_path / "masks", probabilities=True, engine="jax")
    assert len(made) == 1

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: .*full"):
        predict([run, path], tmp_path / "full", probabilities=True, engine="jax")
    assert not list((tmp_path / "full").iterdir())


def test_nothing_that_is_there_is_replaced_unasked(models, tmp_path):
    run, path = models("run"), save(tmp_path / "scan.nii", scan())
    out = tmp_path / "masks"
    predict([run, path], out, probabilities=True, engine="jax")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "scan.nii.gz").unlink()
    with pytest.raises(InputError, match=r"scan_probabilities\.nii\.gz: exists.*--overwrite"):
        predict([run, path], out, probabilities=True, engine="jax")
    predict([run, path], out, engine="jax")
    predict([run, path], out, probabilities=True, overwrite=True, engine="jax")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_uncertainty_is_that_of_the_probabilities(models, tmp_path, by):
    run, affine = models("run", spacing=(1.7, 0.8)), np.diag((1.2, -1.0, 3.0, 1.0))
    save(tmp_path / "scans" / "flat.nii", scan()[..., None], affine)
    save(tmp_path / "scans" / "volume.nii", scan(seed=1), affine)
    out, change = tmp_path / "masks", {"mirror": True, "smallest_component": 20.0}
    predict([run, tmp_path / "scans"], out, change, True, engine=by, uncertainty=True)
    assert not list(out.glob(".*"))
    for name, told in read_predictions(out).items():
        mask, unsure = (nib.load(out / f"{name}{end}.nii.gz") for end in ("", "_entropy"))
        likely = read(out / f"{name}_probabilities.nii.gz").reshape(*SHAPE, 3)
        assert unsure.shape == mask.shape
        assert unsure.get_data_dtype() == np.float32
        np.testing.assert_array_equal(unsure.affine, mask.affine)
        np.testing.assert_allclose(read(out / f"{name}_entropy.nii.gz").squeeze(), entropy(likely))
        assert (told["engine"], told["mirror"], told["models"]) == (by, True, [str(run)])
        assert told["scan"] == [str(tmp_path / "scans" / f"{name}.nii")]
        labels = np.searchsorted([0, 7, 9], np.asarray(mask.dataobj).squeeze())
        # Of the mask before small components were dropped, as the probabilities are.
        sums = overlap_sums(likely, likely.argmax(-1).astype(np.uint8))
        for number, (key, value) in enumerate([("a", 7), ("b", 9)]):
            found = told["classes"][key]
            assert found["value"] == value
            assert found["volume"] == pytest.approx((labels == number + 1).sum() * 3.6)
            assert found["components"] == label(labels == number + 1, np.ones((3, 3, 3)))[1] > 0
            assert found["confidence"] == pytest.approx(inside_probability(sums)[number], abs=1e-5)
            assert found["expected_dice"] == pytest.approx(expected_dice(sums)[number], abs=1e-5)
        assert told["confidence"] == pytest.approx(np.mean(inside_probability(sums)), abs=1e-5)
        assert (told["training_cases"], told["warnings"]) == (0, [])  # this card says nothing


def test_a_scan_unlike_the_training_set_is_told(models, tmp_path):
    run, path = models("run"), save(tmp_path / "scan.nii", scan())
    card = engine.load_model(run)[1]
    # The middle of scan()'s values, from 0 to 4095, lies near 0.5; its frames are 20 × 24 mm.
    usual = {"cases": 4, "directions": [2], "between": [4.0, 4.0]}
    usual |= {"spacing": [[1.0, 1.0], [1.3, 1.3]], "extent": [[20.0, 24.0], [25.0, 31.2]]}
    card["usual"] = usual | {"grey": [[0.3, 0.7]]}
    predict([run, path], tmp_path / "like", engine="jax")
    told = read_predictions(tmp_path / "like")["scan"]
    assert (told["training_cases"], told["warnings"]) == (4, [])
    card["usual"] = usual | {"grey": [[0.01, 0.1]], "between": [2.0, 3.0]}
    predict([run, path], tmp_path / "unlike", engine="jax")
    told = read_predictions(tmp_path / "unlike")["scan"]["warnings"]
    assert told[0] == "slices 4 mm apart, 2 to 3 in training"
    assert "% of the grey range of T1, 1 to 10 in training" in told[1]


def test_what_is_known_of_masks_is_added_to(models, tmp_path):
    run, folder, out = models("run"), tmp_path / "scans", tmp_path / "masks"
    for name in "ab":
        save(folder / f"{name}.nii", scan(seed=ord(name)))
    predict([run, folder / "b.nii"], out, engine="jax")
    before = read_predictions(out)
    predict([run, folder / "a.nii"], out, {"mirror": True}, engine="jax")
    after = read_predictions(out)
    assert list(after) == ["a", "b"]
    assert (after["b"], after["a"]["mirror"]) == (before["b"], True)
    (out / "predictions.json").write_text("{}")
    with pytest.raises(InputError, match=r"predictions\.json: is damaged"):
        predict([run, folder], out, overwrite=True, engine="jax")


def test_no_target_is_a_scan_or_another_target(models, tmp_path):
    run, folder = models("run"), tmp_path / "scans"
    save(folder / "x.nii.gz", scan())
    save(folder / "x_probabilities.nii.gz", scan())
    with pytest.raises(InputError, match=r"would be the mask of one scan and the probabilities"):
        predict([run, folder], tmp_path / "masks", probabilities=True, engine="jax")
    (folder / "x_probabilities.nii.gz").rename(folder / "x_entropy.nii.gz")
    with pytest.raises(InputError, match=r"would be the mask of one scan and the entropy of"):
        predict([run, folder], tmp_path / "masks", uncertainty=True, engine="jax")
    (folder / "x_entropy.nii.gz").rename(folder / "x_probabilities.nii.gz")
    assert not (tmp_path / "masks").exists()
    (folder / "y.nii").write_bytes((folder / "x.nii.gz").read_bytes())
    (folder / "y.nii.gz").symlink_to(folder / "x.nii.gz")
    for wanted in (["x.nii.gz"], ["y.nii", "x.nii.gz"]):  # y's mask would be x itself
        with pytest.raises(InputError, match="would overwrite the scan"):
            predict([run, *(folder / n for n in wanted)], folder, overwrite=True, engine="jax")
    predict([run, folder / "x.nii.gz", folder / "x_probabilities.nii.gz"], tmp_path / "masks")
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 2


def test_scans_read_one_at_a_time_give_the_same(models, tmp_path, monkeypatch):
    run, folder = models("run"), tmp_path / "scans"
    for name in "abc":
        save(folder / f"{name}.nii", scan(seed=ord(name)))
    written = predict([run, folder], tmp_path / "ahead", engine="jax")
    assert [path.name for path in written] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    monkeypatch.setattr(segment, "_READ_AHEAD", 0)
    predict([run, folder], tmp_path / "alone", engine="jax")
    for path in written:
        np.testing.assert_array_equal(read(path), read(tmp_path / "alone" / path.name))


def test_a_folder_of_odd_sizes_compiles_few_programs(models, tmp_path, monkeypatch):
    traced, apply = [], Network.apply

    def counting(self, variables, tiles, *more, **options):
        traced.append(tiles.shape)  # runs only while a program is traced
        return apply(self, variables, tiles, *more, **options)

    monkeypatch.setattr(Network, "apply", counting)
    # Stride 4: both axes are evaluated in arrays of 64; one program for frames of just this size,
    # one for all others.
    shapes = [(64, 64, 4), *np.random.default_rng(0).integers((57, 57, 4), (65, 65, 9), (9, 3))]
    for number, shape in enumerate(shapes):
        save(tmp_path / "scans" / f"{number}.nii", scan(shape))
    predict([models("run"), tmp_path / "scans"], tmp_path / "masks", engine="jax")
    assert traced == [(4, 64, 64, 1)] * 2


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("dimensions", "size"), [(2, (36, 44)), (2, (40, 36)), (3, (36, 8, 12))])
def test_tiles_evaluated_in_larger_arrays_have_the_same_scores(dimensions, size, mirror):
    config, _, variables = model(dimensions)
    tiles = np.random.default_rng(0).normal(size=(2, *size, 1)).astype(np.float32)
    found = probability_forward(config, 3, variables, mirror)(tiles)
    apply, axes = jax.jit(Network(config.model, 3).apply), range(1, 1 + dimensions)
    flips = [c for n in range(1 + dimensions) for c in combinations(axes, n)]
    expected = np.mean(
        [
            np.flip(jax.nn.softmax(apply(variables, np.flip(tiles, flip))[0]), flip)
            for flip in (flips if mirror else [()])
        ],
        axis=0,
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
