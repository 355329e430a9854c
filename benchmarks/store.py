"""Which store reads random training patches fastest, and what memory it takes.

    python benchmarks/store.py [--cases 100] [--patches 5000]

Each store holds the same synthetic cases of 20 frames of 224×224 voxels (0.5 GB as float32 image
and uint8 labels) and is read in a fresh process bound to one core: a random case, a random frame,
a random 96×96 box of image and labels. A quarter of the cases is read first, then all of them
three times over, the best of which counts; growth is what the resident memory gains from the first
quarter to the end. Files come from the page cache, as in training after the first epoch. A second
is one of processor time, all threads counted, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import tensorstore as ts
from array_record.python import array_record_module as array_record
from made_stores import case_record, manifest_of, write_manifest
from scipy import ndimage

from penn_jax.data.store import Store, StoreWriter

FRAMES, SIDE, PATCH = 20, 224, 96
FRAME_SHAPE = (SIDE, SIDE)
CACHE_BYTES = 64 << 20
REPEATS = 3

Draw = Callable[[int, int, slice, slice], tuple[np.ndarray, np.ndarray]]
"""(case, frame, rows, columns) -> image and label patch."""


def cases(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Smooth, noisy frames of 250 grey levels, normalised, with blobs for labels."""
    rng = np.random.default_rng(0)
    base = ndimage.gaussian_filter(rng.standard_normal((FRAMES, *FRAME_SHAPE)), (1, 4, 4))
    base = base / base.std() + 0.1 * rng.standard_normal(base.shape)
    grey = np.clip(np.round(50 * base + 100), 0, 249)
    for _ in range(count):
        shift = rng.integers(0, SIDE, 2)
        image = np.roll(grey, shift, (1, 2)) / rng.uniform(40, 60) - 2
        yield image.astype(np.float32)[..., None], (image > 0.9).astype(np.uint8)


# Of each store: write(folder, count) and reader(folder, count) -> Draw.


def penn_writer(names: int) -> Callable[[Path, int], None]:
    """The project's own store; each case goes by so many names, to show very many cases."""

    def write(folder: Path, count: int) -> None:
        writer, entries = StoreWriter(folder), {}
        for number, (image, labels) in enumerate(cases(count)):
            writer.write_case(f"{number}-0", image, labels)
            for name in range(names):
                entries[f"{number}-{name}"] = case_record(image.shape, labels)
                if name:
                    (folder / "cases" / f"{number}-{name}").symlink_to(f"{number}-0")
        write_manifest(folder, manifest_of(entries))

    return write


def penn_reader(names: int):
    def reader(folder: Path, count: int) -> Draw:
        store, rng = Store(folder), np.random.default_rng(2)

        def draw(case: int, frame: int, rows: slice, columns: slice):
            name, box = f"{case}-{rng.integers(names)}", (slice(frame, frame + 1), rows, columns)
            return store.image(name, box)[0], store.labels(name, box)[0]

        return draw

    return reader


def _array(folder: Path, case: int, array: np.ndarray, zstd: bool, context: ts.Context):
    codecs: list[dict] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if zstd:
        codecs.append({"name": "zstd", "configuration": {"level": 1}})
    path = folder / str(case) / array.dtype.name
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{path}/", "file_io_sync": False},
        "metadata": {
            "shape": array.shape,
            "data_type": array.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [1, *array.shape[1:]]},
            },
            "codecs": [*codecs, {"name": "crc32c"}],
        },
    }
    return ts.open(spec, create=True, open=True, context=context).result()


def _context(cache_bytes: int) -> ts.Context:
    one = {"limit": 1}
    pool = {"total_bytes_limit": cache_bytes}
    return ts.Context(
        {"cache_pool": pool, "data_copy_concurrency": one, "file_io_concurrency": one}
    )


def zarr_writer(dtype: str, zstd: bool) -> Callable[[Path, int], None]:
    def write(folder: Path, count: int) -> None:
        for number, (image, labels) in enumerate(cases(count)):
            for array in (image.astype(dtype), labels):
                _array(folder, number, array, zstd, _context(0)).write(array).result()

    return write


def zarr_reader(dtype: str, zstd: bool, cache_bytes: int = 0, frames: bool = False):
    """Read by box or by whole frames, with a handle open for every array."""
    like = (np.empty((FRAMES, SIDE, SIDE, 1), dtype), np.empty((FRAMES, SIDE, SIDE), np.uint8))

    def reader(folder: Path, count: int) -> Draw:
        context, opened = _context(cache_bytes), {}

        def draw(case: int, frame: int, rows: slice, columns: slice):
            if case not in opened:
                opened[case] = [_array(folder, case, array, zstd, context) for array in like]
            image, labels = opened[case]
            if frames:
                image, labels = image[frame].read().result(), labels[frame].read().result()
                return image[rows, columns].astype(np.float32), labels[rows, columns].copy()
            image = image[frame, rows, columns].read().result()
            labels = labels[frame, rows, columns].read().result()
            return image.astype(np.float32, copy=False), labels

        return draw

    return reader


def write_npy(folder: Path, count: int) -> None:
    for number, (image, labels) in enumerate(cases(count)):
        np.save(folder / f"{number}_image.npy", image)
        np.save(folder / f"{number}_labels.npy", labels)


def read_npy(folder: Path, count: int) -> Draw:
    opened: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def draw(case: int, frame: int, rows: slice, columns: slice):
        if case not in opened:
            opened[case] = (
                np.load(folder / f"{case}_image.npy", mmap_mode="r"),
                np.load(folder / f"{case}_labels.npy", mmap_mode="r"),
            )
        image, labels = opened[case]
        return np.array(image[frame, rows, columns]), np.array(labels[frame, rows, columns])

    return draw


def write_array_record(folder: Path, count: int) -> None:
    writer = array_record.ArrayRecordWriter(str(folder / "frames"), "group_size:1,uncompressed")
    for image, labels in cases(count):
        for frame in range(FRAMES):
            writer.write(image[frame].tobytes() + labels[frame].tobytes())
    writer.close()


def read_array_record(folder: Path, count: int) -> Draw:
    options = "readahead_buffer_size:0"
    reader = array_record.ArrayRecordReader(str(folder / "frames"), options=options)

    def draw(case: int, frame: int, rows: slice, columns: slice):
        record = reader.read([case * FRAMES + frame])[0]
        image = np.frombuffer(record, np.float32, SIDE * SIDE).reshape(*FRAME_SHAPE, 1)
        labels = np.frombuffer(record, np.uint8, offset=image.nbytes).reshape(FRAME_SHAPE)
        return image[rows, columns].copy(), labels[rows, columns].copy()

    return draw


FLOAT32, ZSTD = zarr_writer("float32", False), zarr_writer("float32", True)
STORES = {
    "Store (data/store.py)": (penn_writer(1), penn_reader(1)),
    "Store, 80 times the cases": (penn_writer(80), penn_reader(80)),
    "zarr3": (FLOAT32, zarr_reader("float32", False)),
    "zarr3, whole frames": (FLOAT32, zarr_reader("float32", False, frames=True)),
    "zarr3, cache_pool": (FLOAT32, zarr_reader("float32", False, CACHE_BYTES)),
    "zarr3 zstd": (ZSTD, zarr_reader("float32", True)),
    "zarr3 zstd, cache_pool": (ZSTD, zarr_reader("float32", True, CACHE_BYTES)),
    "zarr3 float16": (zarr_writer("float16", False), zarr_reader("float16", False)),
    ".npy, memory-mapped": (write_npy, read_npy),
    "ArrayRecord, a frame a record": (write_array_record, read_array_record),
}


def memory(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (peak); ru_maxrss would count the parent's peak too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def measure(name: str, folder: Path, count: int, patches: int) -> dict[str, float]:
    """Patches a second and memory of this process, which must be fresh and on one core."""
    rng = np.random.default_rng(1)
    draw = STORES[name][1](folder, count)

    def rate(among: int) -> float:
        corners = rng.integers(0, SIDE - PATCH + 1, (patches, 2)).tolist()
        places = zip(
            rng.integers(0, among, patches).tolist(),
            rng.integers(0, FRAMES, patches).tolist(),
            corners,
            strict=True,
        )
        start = time.process_time()
        for case, frame, (row, column) in places:
            draw(case, frame, slice(row, row + PATCH), slice(column, column + PATCH))
        return patches / (time.process_time() - start)

    rate(max(1, count // 4))
    before = memory("VmRSS")
    best = max(rate(count) for _ in range(REPEATS))
    return {
        "rate": best,
        "peak": memory("VmHWM"),
        "growth": memory("VmRSS") - before,
    }


def report(name: str, folder: Path, count: int, patches: int) -> None:
    """Measure in a process of its own and print one row."""
    command = [sys.executable, __file__, "--only", name, "--measure", str(folder)]
    command += ["--cases", str(count), "--patches", str(patches)]
    found = json.loads(subprocess.check_output(command))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    columns = f"{found['peak'] / 1e6:.0f} | {found['growth'] / 1e6:.0f} | {size / 1e6:.0f}"
    print(f"| {name} | {found['rate']:,.0f} | {columns} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--patches", type=int, default=5000, help="drawn in each of the repeats")
    parser.add_argument("--only", choices=STORES, help="measure this store alone")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.only, given.measure, given.cases, given.patches)))
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the measured processes inherit it
    print(f"| store, {given.cases} cases | patches/s | peak RSS, MB | growth, MB | on disk, MB |")
    print("|---|---|---|---|---|")
    for write, names in groupby(
        [given.only] if given.only else STORES, lambda name: STORES[name][0]
    ):
        folder = Path(tempfile.mkdtemp(prefix="store_benchmark_"))
        try:
            write(folder, given.cases)
            for name in names:
                report(name, folder, given.cases, given.patches)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
