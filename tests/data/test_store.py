"""The store against the arrays that were written and against NumPy's own indexing."""

import functools
import http.server
import json
import os
import pickle
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_stores import case_record, manifest_of, write_manifest, write_store

from penn_jax.data import store as module
from penn_jax.data.store import FOREGROUND_VOXELS, Store, StoreWriter, foreground_table
from penn_jax.types import IGNORE_LABEL, InputError


def make_case(shape, seed=0, classes=3):
    """Random image (F, *spatial, C) and labels (F, *spatial)."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal(shape).astype(np.float32)
    return image, rng.integers(0, classes, shape[:-1]).astype(np.uint8)


def whole(labels):
    return tuple(slice(0, size) for size in labels.shape)


@pytest.fixture
def small(tmp_path):
    """Two labelled cases, one of them with an awkward name, and an unlabelled one."""
    image, labels = make_case((3, 20, 24, 2))
    names = {"a": (image, labels), "Wirbelsäule 脊椎 7%20#?": (image + 1, labels)}
    return write_store(tmp_path / "store", {**names, "scan only": (image, None)})


@settings(max_examples=25, deadline=None)
@given(data=st.data(), dimensions=st.sampled_from([2, 3]))
def test_any_box_of_any_shape_comes_back_as_written(tmp_path_factory, data, dimensions):
    # Up to 140 voxels a side in 3-D: three chunks along an axis.
    longest = 40 if dimensions == 2 else 140
    sides = [data.draw(st.integers(1, longest)) for _ in range(dimensions)]
    frames = data.draw(st.integers(1, 4)) if dimensions == 2 else 1
    image, labels = make_case((frames, *sides, data.draw(st.integers(1, 3))))
    store = Store(write_store(tmp_path_factory.mktemp("store"), {"case": (image, labels)}))
    box = []
    for size in labels.shape:
        start = data.draw(st.integers(0, size - 1))
        box.append(slice(start, data.draw(st.integers(start, size))))
    box = tuple(box)

    assert store.frames_shape("case") == image.shape
    for found, written in ((store.image, image), (store.labels, labels)):
        # Expected: NumPy's slice of the array that was written.
        np.testing.assert_array_equal(found("case", box), written[box], strict=True)
        np.testing.assert_array_equal(found("case", whole(labels)), written, strict=True)


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [
        ((20, 224, 200, 2), [1, 224, 200, 2]),  # a frame
        ((1, 64, 65, 200, 1), [1, 64, 33, 50, 1]),  # ceil(65 / 2), 200 / 4: equal blocks <= 64
    ],
)
def test_chunks_are_frames_in_2d_and_blocks_in_3d(shape, chunk, tmp_path):
    write_store(tmp_path, {"case": (np.zeros(shape, np.float32), None)})
    metadata = json.loads((tmp_path / "cases/case/image/zarr.json").read_text())
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == chunk


def test_names_with_unicode_spaces_and_url_marks(small):
    store = Store(small)
    assert store.cases == ("a", "Wirbelsäule 脊椎 7%20#?", "scan only")
    image, _ = make_case((3, 20, 24, 2))
    box = whole(image[..., 0])
    np.testing.assert_array_equal(store.image("Wirbelsäule 脊椎 7%20#?", box), image + 1)
    np.testing.assert_array_equal(store.image("a", box), image)


def test_a_case_written_again_replaces_the_former(tmp_path):
    write_store(tmp_path, {"case": make_case((3, 20, 24, 2))})
    image, _ = make_case((1, 9, 7, 1), seed=1)
    store = Store(write_store(tmp_path, {"case": (image, None)}))
    np.testing.assert_array_equal(store.image("case", whole(image[..., 0])), image, strict=True)
    assert not (tmp_path / "cases/case/labels").exists()


@pytest.mark.parametrize("shape", [(4, 30, 20, 1), (1, 12, 20, 14, 1)])
def test_foreground_is_argwhere_of_each_class(shape, tmp_path):
    image, labels = make_case(shape, classes=4)
    labels[labels == 2] = IGNORE_LABEL
    store = Store(write_store(tmp_path, {"case": (image, labels)}))
    found = store.foreground("case")
    assert sorted(found) == [1, 3]  # neither background, nor the ignored voxels, nor 2
    for label, voxels in found.items():
        assert voxels.dtype == np.int32
        np.testing.assert_array_equal(voxels, np.argwhere(labels == label))  # NumPy
    with pytest.raises(ValueError, match="read-only"):
        found[1][0] = 0


def test_foreground_of_a_large_class_is_a_uniform_draw():
    labels = np.zeros((2, 200, 200), np.uint8)
    labels[:, 50:150] = 1  # 2 · 100 · 200 = 40,000 voxels, a quarter of which is kept
    labels[1, 0, :5] = 2
    table = foreground_table("case", labels)
    large, little = (table[table[:, 0] == label, 1:] for label in (1, 2))
    assert len(large) == FOREGROUND_VOXELS
    assert len(np.unique(large, axis=0)) == FOREGROUND_VOXELS  # none twice
    assert (labels[tuple(large.T)] == 1).all()
    np.testing.assert_array_equal(little, np.argwhere(labels == 2))  # small classes whole
    # Mean row of a uniform draw: 99.5 ± 100 / sqrt(12 · 10,000) = ± 0.29 (one deviation).
    assert abs(large[:, 1].mean() - 99.5) < 1.5
    np.testing.assert_array_equal(table, foreground_table("case", labels))
    assert not np.array_equal(table, foreground_table("another", labels))


def test_a_case_without_foreground_has_an_empty_index(tmp_path):
    image, labels = make_case((2, 8, 8, 1), classes=1)
    assert Store(write_store(tmp_path, {"case": (image, labels)})).foreground("case") == {}


def test_pickled_store_reads_the_same_and_carries_no_handles(small):
    store = Store(small)
    size = len(pickle.dumps(store))
    box = (slice(1, 2), slice(3, 9), slice(0, 24))
    image = store.image("a", box)
    store.foreground("a")
    assert len(pickle.dumps(store)) == size
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.image("a", box), image)
    assert repr(copy) == repr(store) == f"Store({str(small)!r}, data_hash='{'ab' * 32}')"


def test_repr_depends_on_path_and_data_hash_alone(small, monkeypatch):
    monkeypatch.chdir(small.parent)
    assert repr(Store("store")) == repr(Store(small))
    write_store(small, {"a": make_case((1, 8, 8, 1))}, data_hash="cd" * 32)
    assert repr(Store(small)) == f"Store({str(small)!r}, data_hash='{'cd' * 32}')"


def test_processes_write_cases_side_by_side(tmp_path):
    image, labels = make_case((2, 16, 16, 1))
    names = [f"case {number}" for number in range(4)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        write = functools.partial(StoreWriter(tmp_path).write_case, image=image, labels=labels)
        list(pool.map(write, names))
    write_manifest(tmp_path, manifest_of({n: case_record(image.shape, labels) for n in names}))
    store = Store(tmp_path)
    for name in names:
        np.testing.assert_array_equal(store.image(name, whole(labels)), image)


def test_threads_read_what_one_thread_reads(tmp_path):
    cases = {str(seed): make_case((4, 32, 32, 1), seed) for seed in range(6)}
    store = Store(write_store(tmp_path, cases))

    def read(number):
        name, frame = str(number % 6), number % 4
        box = (slice(frame, frame + 1), slice(0, 32), slice(5, 20))
        same = np.array_equal(store.image(name, box), cases[name][0][box])
        return same and np.array_equal(store.labels(name, box), cases[name][1][box])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))


def test_handles_and_caches_do_not_grow_with_the_cases(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_OPEN_ARRAYS", 6)
    monkeypatch.setattr(module, "_HELD_FOREGROUNDS", 2)
    cases = {str(seed): make_case((2, 16, 16, 1), seed) for seed in range(20)}
    store = Store(write_store(tmp_path, cases))

    def open_files(names):
        for name in names:
            box = whole(cases[name][1])
            np.testing.assert_array_equal(store.image(name, box), cases[name][0])
            np.testing.assert_array_equal(store.labels(name, box), cases[name][1])
            found = store.foreground(name)[1]
            np.testing.assert_array_equal(found, np.argwhere(cases[name][1] == 1))
        # Descriptors of other files come and go with the threads of other libraries.
        targets = [os.path.realpath(handle) for handle in Path("/proc/self/fd").iterdir()]
        return sum(target.startswith(str(tmp_path)) for target in targets)

    # A file that is still being closed may be among them, one for each case may not.
    assert open_files(store.cases * 2) <= 6
    assert store._array.cache_info().currsize == 6
    assert store._foreground.cache_info().currsize == 2


def test_a_store_is_read_over_http(small):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(small.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            store = Store(f"http://127.0.0.1:{server.server_port}/store/")
            name = "Wirbelsäule 脊椎 7%20#?"
            image, labels = make_case((3, 20, 24, 2))
            np.testing.assert_array_equal(store.image(name, whole(labels)), image + 1)
            np.testing.assert_array_equal(store.foreground(name)[2], np.argwhere(labels == 2))
            with pytest.raises(InputError, match=r"nowhere/manifest\.json: is missing"):
                Store(f"http://127.0.0.1:{server.server_port}/nowhere")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"manifest\.json: is missing, expected a prepared store of format 2; run penn"),
        ('{"format": 3}', r"manifest\.json: is of format 3, expected .* format 2"),
        ('{"format": 2, "cases": {"a": {"frames_', "is damaged .*; delete the store and prepare"),
        ("\xff", "is damaged"),
    ],
)
def test_a_folder_without_a_sound_manifest_is_refused(text, message, small):
    manifest = small / "manifest.json"
    manifest.unlink()
    if text is not None:
        manifest.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message) as caught:
        Store(small)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path / "file", "cannot be read|is missing"),
        (tmp_path / "nothing", "is missing"),
        ("nosuch://bucket/store", "cannot be opened"),
    ):
        with pytest.raises(InputError, match=message):
            Store(path)


def test_unknown_and_unlabelled_cases_are_refused(small):
    store = Store(small)
    box = (slice(0, 1), slice(0, 4), slice(0, 4))
    for read in (store.image, store.labels):
        with pytest.raises(InputError, match="no case 'b'"):
            read("b", box)
    with pytest.raises(InputError, match="no case 'b'"):
        store.frames_shape("b")
    assert store.image("scan only", box).shape == (1, 4, 4, 2)
    with pytest.raises(InputError, match="no labels for case 'scan only'"):
        store.labels("scan only", box)
    with pytest.raises(InputError, match="no labels for case 'scan only'"):
        store.foreground("scan only")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda image: shutil.rmtree(image),
        lambda image: (image / "zarr.json").write_text("{"),
        lambda image: (image / "c/1/0/0/0").unlink(),
        lambda image: (image / "c/1/0/0/0").write_bytes(b""),
        lambda image: flip(image / "c/1/0/0/0"),
    ],
    ids=["no array", "metadata", "no chunk", "empty chunk", "one bit"],
)
def test_a_damaged_array_is_an_error_that_names_the_case(harm, small):
    harm(small / "cases/a/image")
    store = Store(small)
    with pytest.raises(InputError, match=r"cases/a/image: .*missing or damaged") as caught:
        store.image("a", (slice(0, 3), slice(0, 20), slice(0, 24)))
    assert "\n" not in str(caught.value)
    store.image("scan only", (slice(0, 3), slice(0, 20), slice(0, 24)))  # others are unharmed


def test_a_zero_image_is_stored_not_taken_for_missing(tmp_path):
    image = np.zeros((2, 9, 9, 1), np.float32)
    labels = np.zeros((2, 9, 9), np.uint8)
    store = Store(write_store(tmp_path, {"case": (image, labels)}))
    np.testing.assert_array_equal(store.image("case", whole(labels)), image)
    np.testing.assert_array_equal(store.labels("case", whole(labels)), labels)


def test_an_array_that_is_not_the_manifests_is_refused(small):
    manifest = json.loads((small / "manifest.json").read_text())
    changed = case_record((3, 20, 25, 2), np.zeros((3, 20, 25), np.uint8))
    manifest["cases"]["a"] = changed
    (small / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"\(3, 20, 24, 2\), not \(3, 20, 25, 2\)"):
        Store(small).image("a", (slice(0, 1), slice(0, 4), slice(0, 4)))


@pytest.mark.parametrize(
    "box",
    [
        (slice(0, 1), slice(0, 4)),
        (slice(0, 4), slice(0, 4), slice(0, 4)),
        (slice(0, 1), slice(-1, 4), slice(0, 4)),
        (slice(0, 1), slice(5, 4), slice(0, 4)),
        (slice(0, 1), slice(0, 4, 2), slice(0, 4)),
    ],
)
def test_a_box_that_leaves_the_image_is_an_index_error(box, small):
    with pytest.raises(IndexError):
        Store(small).image("a", box)


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", "a\\b", "a\0", "\udcff"])
def test_a_name_that_leaves_the_folder_is_refused(name, tmp_path):
    image, labels = make_case((1, 4, 4, 1))
    with pytest.raises(InputError, match="cannot name a case"):
        StoreWriter(tmp_path / "store").write_case(name, image, labels)
    assert list(tmp_path.iterdir()) == []
