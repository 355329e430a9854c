"""The file that stands alone: its frames, tiles and masks against the project's own."""

import gzip
import hashlib
import json
import struct
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from scipy import ndimage

from penn_jax.components import drop_small_components
from penn_jax.config import ModelConfig
from penn_jax.data import grid as reference
from penn_jax.data import header
from penn_jax.export import penn_torch
from penn_jax.export.torch import to_torch
from penn_jax.model.network import Network, halo, total_stride
from penn_jax.predict.case import most_likely

RAMP = np.arange(189.0).reshape(9, 7, 3)
CODES = ["RAS", "LPS", "SRA", "PIR", "ASL", "IRP"]


def _affine(code, spacing):
    """Axes along those that the code names, voxels of the given size."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (letter, mm) in enumerate(zip(code, spacing, strict=True)):
        row = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        affine[row, axis] = mm if letter in "RAS" else -mm
    return affine


@given(
    st.sampled_from(CODES),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.sampled_from([0.7, 1.0, 1.005, 2.5, 4.0])] * 3),
    st.sampled_from([2, 3]),
    st.sampled_from([None, 1.0, 3.1]),
    st.integers(0, 5),
)
def test_frames_and_masks_are_those_of_the_project(code, shape, mm, dimensions, target, seed):
    affine, rng = _affine(code, mm), np.random.default_rng(seed)
    spacing = None if target is None else (target,) * dimensions
    orientation = nib.orientations.io_orientation(affine)
    theirs = reference.plan_frames(shape, affine, orientation, dimensions, spacing)
    ours = penn_torch.plan(shape, affine, dimensions, spacing)
    assert ours.sizes == theirs.shape[1:]

    scan = rng.normal(size=(*shape, 2)).astype(np.float32).round(seed)  # few values at times
    expected = reference.normalise(reference.to_frames(scan, theirs, order=1))
    found = penn_torch.to_frames(np.moveaxis(scan, -1, 0), ours)
    np.testing.assert_allclose(np.moveaxis(found, 0, -1), expected, atol=2e-5)

    likely = rng.uniform(size=(*theirs.shape, 3)).astype(np.float32)
    back = reference.from_frames(likely, theirs, order=1)
    mask = penn_torch.to_mask(np.moveaxis(likely, -1, 1), ours)
    ends = np.sort(back, axis=-1)
    decided = ends[..., -1] - ends[..., -2] > 1e-5
    np.testing.assert_array_equal(mask[decided], most_likely(back)[decided])


def test_constants_are_those_of_the_project():
    for name in (
        *("SPACING_TOLERANCE", "PERCENTILES", "BODY_THRESHOLD"),
        *("LARGEST_INTENSITY", "LEAST_CONTRAST"),
    ):
        assert getattr(penn_torch, name) == getattr(reference, name)
    for name in ("SPACINGS", "LARGEST_SHEAR"):
        assert getattr(penn_torch, name) == getattr(header, name)


@pytest.mark.parametrize("case", ["constant", "two values", "an outlier", "nearly constant"])
def test_odd_intensities_are_those_of_the_project(case):
    values = np.zeros((1, 20, 20, 1), np.float32)
    if case == "nearly constant":
        values[0, 3] = 1e-31
    elif case != "constant":
        values[0, : 7 if case == "two values" else 1, :1] = 3
    expected = reference.normalise(values)
    np.testing.assert_allclose(penn_torch.normalise(values[..., 0]), expected[..., 0], atol=1e-6)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    ("norm", "sizes"), [("batch", (50, 37)), ("none", (21, 9, 14)), ("group", (50, 37))]
)
def test_tiles_change_nothing(drawn, norm, sizes, mirror):
    config = ModelConfig(channels=(3, 4), blocks=1, stem=1, norm=norm)
    dimensions = len(sizes)
    variables = drawn(Network(config, 2), channels=3, dimensions=dimensions)
    network = to_torch(variables, config, 2, 3, dimensions)
    frames = np.random.default_rng(0).normal(size=(1, 3, *sizes)).astype(np.float32)
    given = {"neighbours": 1, "stride": total_stride(config), "mirror": mirror}
    given["halo"] = None if norm == "group" else halo(config)
    shape = [-(-n // given["stride"]) * given["stride"] for n in sizes]
    count = len(list(penn_torch.tiles(shape, given["stride"], given["halo"], 500)))
    assert (count == 1) == (norm == "group")  # whose statistics are those of a whole frame
    whole = list(penn_torch.predict(network, frames, most_voxels=10**9, **given))
    tiled = list(penn_torch.predict(network, frames, most_voxels=500, **given))
    for one, other in zip(whole, tiled, strict=True):
        assert one.shape == (2, *sizes)
        np.testing.assert_allclose(one.sum(axis=0), 1, atol=1e-5)
        np.testing.assert_allclose(other, one, atol=1e-6)


@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)), st.sampled_from([1, 4]), st.integers(1, 4000)
)
def test_boxes_cover_a_frame_once_and_tiles_start_at_the_stride(shape, stride, most):
    shape = [n * stride for n in shape]
    seen, reach = np.zeros(shape, int), 2 * stride
    for box, tile in penn_torch.tiles(shape, stride, reach, most):
        seen[tuple(box)] += 1
        for b, t, n in zip(box, tile, shape, strict=True):
            assert t.start % stride == 0
            assert t.start == max(0, b.start - reach)
            assert t.stop == min(n, b.stop + reach)
    assert (seen == 1).all()
    assert len(list(penn_torch.tiles(shape, stride, None, most))) == 1


@given(st.tuples(*[st.integers(1, 12)] * 3), st.floats(0.05, 0.6), st.integers(0, 3))
def test_components_are_those_of_scipy(shape, share, seed):
    rng = np.random.default_rng(seed)
    part = rng.uniform(size=shape) < share
    found = penn_torch.components(part)
    expected, count = ndimage.label(part, np.ones((3, 3, 3)))
    pairs = set(zip(found[part].tolist(), expected[part].tolist(), strict=True))
    assert len(pairs) == count == len({one for one, _ in pairs})
    assert not found[~part].any()
    mask = (rng.integers(0, 3, shape) * part).astype(np.uint8)
    ours, theirs = mask.copy(), mask.copy()
    penn_torch.drop_small(ours, (1.0, 0.5, 3.0), 4.5)
    drop_small_components(theirs, (1.0, 0.5, 3.0), 4.5)
    np.testing.assert_array_equal(ours, theirs)


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An export as ``penn export --to torch`` writes it, but by hand: the standalone's own view."""
    out = tmp_path_factory.mktemp("exported")
    options = {"inputs": 2, "classes": 2, "dimensions": 2, "stem": 2, "channels": [4],
               "blocks": 1, "skip": "none", "residual": False, "norm": "batch"}  # fmt: skip
    torch.manual_seed(0)
    weights = save(penn_torch.Network(**options).state_dict())
    (out / "model.safetensors").write_bytes(weights)
    content = {
        "network": options,
        "scan": {"channels": ["T1", "T2"], "dimensions": 2, "spacing": None},
        "evaluation": {"neighbours": 0, "stride": 2, "halo": 8, "most_voxels": 1000,
                       "mirror": False},
        "mask": {"values": [0, 9], "smallest_component": 0.0},
        "files": {"model.safetensors": hashlib.sha256(weights).hexdigest()},
    }  # fmt: skip
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (out / "config.json").write_text(json.dumps(content))
    return out


@pytest.fixture
def command(folder, tmp_path, monkeypatch, capsys):
    """Run the command on a copy of the export, two channels and whatever a test changes of them."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        array = rng.integers(0, 99, (9, 7, 3)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.diag((1.0, 1.0, 4.0, 1.0))), tmp_path / f"{name}.nii")
    monkeypatch.setattr(penn_torch, "__file__", str(tmp_path / "penn_torch.py"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = penn_torch.main(arguments or ["a.nii", "b.nii", "m.nii.gz", "--device", "cpu"])
        return code, capsys.readouterr().err

    return tmp_path, run


def test_a_mask_lies_on_its_scan_and_holds_nothing_else(command):
    folder, run = command
    scan = nib.Nifti1Image(RAMP, np.diag((1.0, 1.0, 4.0, 1.0)))
    scan.header["descrip"] = b"the name of a patient"
    scan.set_sform(scan.affine, 2)
    nib.save(scan, folder / "a.nii")
    assert run() == (0, "")
    mask, scan = nib.load(folder / "m.nii.gz"), nib.load(folder / "a.nii")
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == scan.shape
    assert set(np.unique(mask.dataobj)) == {0, 9}
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert int(mask.header["sform_code"]) == 2
    assert mask.header["descrip"].item() == b""
    assert not list(folder.glob(".*"))


def test_a_grid_that_moves_no_corner_by_a_tenth_of_a_voxel_is_the_same(command):
    folder, run = command
    affine = np.diag((1.0, 1.0, 4.0, 1.0))
    affine[0, 3] = 0.09
    _nifti(folder / "b.nii", RAMP, affine)
    assert run() == (0, "")
    (folder / "m.nii.gz").unlink()
    affine[:2, :2] = [[1, -0.02], [0.02, 1]]  # 0.02 · 8 voxels = 0.16 mm at the far corner
    affine[0, 3] = 0
    _nifti(folder / "b.nii", RAMP, affine)
    code, line = run()
    assert code == 2
    assert "b.nii: lies on another grid than a.nii" in line


def test_the_network_alone_needs_no_nibabel(folder, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "nibabel"]:
        monkeypatch.setitem(sys.modules, name, None)
    network, config = penn_torch.load(folder)
    scores = network(torch.zeros(1, config["network"]["inputs"], 4, 4))
    assert scores.shape == (1, 2, 4, 4)


def _text(path, change):
    path.write_text(change(path.read_text()))


def _nifti(path, array, affine=None):
    affine = np.diag((1.0, 1.0, 4.0, 1.0)) if affine is None else affine
    nib.save(nib.Nifti1Image(array, affine), path)


def _header(path, at, kind, *values):
    """Overwrite fields of a header, at the byte that the NIfTI-1 standard gives them."""
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(values)}{kind}", content, at, *values)
    path.write_bytes(content)


def _damaged(path):
    """A gzip file, whole but for its checksum."""
    content = bytearray(gzip.compress((path.parent / "a.nii").read_bytes()))
    content[-8] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (None, ["a.nii", "m.nii.gz"], "1 images, but the network takes 2: T1, T2"),
        (None, ["a.nii", "c.nii", "m.nii.gz"], "c.nii"),
        (None, ["a.nii", "b.nii", "m.png"], "m.png: not a NIfTI name"),
        (None, ["a.nii", "b.nii", "none/m.nii"], "none"),
        (lambda f: _nifti(f / "b.nii", np.zeros((9, 7, 3))), [], "b.nii: expected finite"),
        (lambda f: _nifti(f / "b.nii", RAMP * 1e40), [], "b.nii: expected finite"),
        (lambda f: _nifti(f / "b.nii", RAMP * np.nan), [], "b.nii: expected finite"),
        (lambda f: _nifti(f / "b.nii", RAMP[1:]), [], "b.nii: lies on another grid than a.nii"),
        (lambda f: _nifti(f / "b.nii", RAMP, np.eye(4)), [], "b.nii: lies on another grid"),
        (lambda f: _nifti(f / "a.nii", RAMP[0]), [], "a.nii: its shape is"),
        (lambda f: (f / "a.nii").write_bytes(b"no"), [], "a.nii"),
        (lambda f: _nifti(f / "a.nii", RAMP * 1j), [], "a.nii: cannot be read as an image (its v"),
        (lambda f: _header(f / "a.nii", 70, "h", 999), [], "a.nii: cannot be read as an image"),
        (lambda f: _header(f / "a.nii", 42, "h", 0), [], "a.nii: "),
        (lambda f: _header(f / "a.nii", 42, "h", *[32767] * 3), [], "a.nii: cannot be read"),
        (lambda f: _header(f / "a.nii", 123, "b", 1), [], "a.nii: its unit of length is not mm"),
        (lambda f: _header(f / "a.nii", 280, "f", *[np.nan] * 4), [], "a.nii: expected an affine"),
        (lambda f: _header(f / "a.nii", 280, "f", *[0] * 4), [], "a.nii: expected an affine"),
        (lambda f: _header(f / "a.nii", 284, "f", 0.1), [], "a.nii: expected an affine of right"),
        (lambda f: _damaged(f / "z.nii.gz"), ["z.nii.gz", "b.nii", "m.nii.gz"], "z.nii.gz: "),
        (None, ["a.nii", "b.nii", "a.nii"], "a.nii: is the scan itself"),
        (None, ["a.nii", "b.nii", "m.nii", "--device", "abacus"], "--device abacus: PyTorch"),
        (lambda f: (f / "model.safetensors").unlink(), [], "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no"), [], "not the file that was"),
        (lambda f: _text(f / "config.json", lambda s: s.replace("9]", "8]")), [], "config.json"),
        (lambda f: _text(f / "config.json", lambda s: s[1:]), [], "config.json: not the file"),
        (lambda f: (f / "config.json").unlink(), [], "config.json"),
        (None, ["a.nii", "b.nii", "m.nii", "--weights", "a.nii"], "a.nii"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_no_mask(command, change, arguments, said):
    folder, run = command
    if change:
        change(folder)
    code, line = run(*arguments)
    assert code == 2
    assert line.startswith("penn_torch: error: ")
    assert line.count("\n") == 1
    assert said in line
    assert not list(folder.glob("*m.*"))


def test_fine_tuned_weights_are_taken_if_they_fit(command):
    folder, run = command
    state = load_file(folder / "model.safetensors")
    state["head_0.bias"] = torch.tensor([-1e6, 1e6])
    save_file(state, folder / "tuned.safetensors")
    arguments = ["a.nii", "b.nii", "m.nii.gz", "--weights", "tuned.safetensors"]
    assert run(*arguments) == (0, "")
    assert (np.asarray(nib.load(folder / "m.nii.gz").dataobj) == 9).all()
    (folder / "m.nii.gz").unlink()
    del state["head_0.bias"]
    save_file(state, folder / "tuned.safetensors")
    code, line = run(*arguments)
    assert code == 2
    assert "head_0.bias" in line
