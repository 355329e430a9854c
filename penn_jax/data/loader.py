"""The stream of training batches, built with Grain; every patch is a function of (seed, index).

Nothing depends on threads, worker processes, hosts or where a run was resumed: sample ``i`` of the
stream is the same patch wherever it is cut, and batch ``b`` holds the samples
``b · batch_size … (b + 1) · batch_size - 1``.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing import parent_process
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from penn_jax.config import PatchConfig
from penn_jax.data.held import HeldFrames, held_bytes
from penn_jax.data.patches import PatchDraw, cut_patch, draw_patch
from penn_jax.data.store import Store
from penn_jax.types import Batch

# Grain shuffles small sources slowly (about 30 ms / n an item), so the cases are repeated.
_LEAST_RECORDS = 4096
_BUFFERED_BATCHES = 4
_HELD_BYTES = 512 << 20
"""Cases that take no more are held by each process that cuts; of others each patch is read."""
_SHUFFLING, _DRAWING = 1, 3
"""What randomness is for; Grain's own seeds depend on how many transformations there are."""
_REMOTE_THREADS = 4
"""Where each read waits for the network. More would slow each other once all has been read."""


Reader = Store | HeldFrames


@runtime_checkable
class BatchIterator(Protocol):
    """Endless batches, until it is closed."""

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


class _CaseNumbers:
    """A source whose record ``i`` is the number of a case."""

    def __init__(self, cases: int):
        self._cases = cases
        self._length = cases * -(-_LEAST_RECORDS // cases)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index % self._cases

    def __repr__(self) -> str:
        return f"_CaseNumbers({self._cases})"


class _Draw(grain.transforms.RandomMap):
    """From the number of a case to where a patch of it lies."""

    def __init__(self, reader: Reader, cases: Sequence[str], config: PatchConfig):
        self._reader, self._cases, self._config = reader, tuple(cases), config

    def random_map(self, element: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        case = self._cases[element]
        record = self._reader.manifest["cases"][case]
        draw = draw_patch(
            rng,
            record["frames_shape"][:-1],
            (lambda: self._reader.foreground(case)) if record["labelled"] else dict,
            self._config,
            self._reader.manifest["spacing"],
        )
        return {"place": np.array([element, *draw.coordinates()])}


class _SampleNumbers(grain.transforms.MapWithIndex):
    """Adds to a host's batches the numbers that their samples have in the whole stream."""

    def __init__(self, share: int, first: int, host: int, hosts: int):
        self._share, self._first, self._host, self._hosts = share, first, host, hosts

    def map_with_index(self, index: int, element: dict[str, Any]) -> dict[str, Any]:
        in_share = self._first + index * self._share + np.arange(self._share)
        return {"index": self._host + self._hosts * in_share, **element}


class _Cut(grain.transforms.Map):
    """From a batch of places to their patches, all cut into the arrays of the batch."""

    def __init__(self, reader: Reader, cases: Sequence[str], config: PatchConfig):
        self._reader, self._cases, self._config = reader, tuple(cases), config

    def map(self, element: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        places, size = element["place"], self._config.size
        records = self._reader.manifest["cases"]
        channels = records[self._cases[0]]["frames_shape"][-1] * (1 + 2 * self._config.neighbours)
        image = np.empty((len(places), *size, channels), np.float32)
        label = np.empty((len(places), *size), np.uint8)
        for number, place in enumerate(places):
            case = self._cases[int(place[0])]
            cut_patch(
                self._reader,
                case,
                records[case]["frames_shape"][:-1],
                PatchDraw.at(place[1:], len(size)),
                self._config,
                image[number],
                label[number],
                labelled=records[case]["labelled"],
            )
        return {"image": image, "label": label, **element}


def stream(
    store: Store,
    cases: Sequence[str],
    config: PatchConfig,
    batch_size: int,
    seed: int,
    first_batch: int = 0,
    host: int = 0,
    hosts: int = 1,
    workers: int = 0,
) -> BatchIterator:
    """Endless batches of this host's share of the samples, from ``first_batch`` on.

    Args:
        store: prepared cases.
        cases: the ones to draw from, each equally often.
        config: patch size and geometry.
        batch_size: global; this host yields ``batch_size / hosts`` samples a batch.
        seed: decides, with the sample's index, everything random about it.
        first_batch: number of batches already consumed by the run that goes on.
        host: this host's number, of ``hosts``.
        hosts: how many hosts share each batch; host h has the samples h, h + hosts, ….
        workers: processes that cut patches; 0 cuts them in a thread beside the training step.

    Returns:
        The batches; close it to end its threads. A batch holds ``image`` float32 (B, *size, C),
        ``label`` uint8 (B, *size), ``index`` int64 (B) and ``place`` float64 (B, m): case number
        and ``PatchDraw.coordinates()``.

    Raises:
        ValueError: no cases, or a batch that the hosts cannot share evenly.
    """
    if not cases:
        raise ValueError("no cases to draw patches from")
    if batch_size % hosts:
        raise ValueError(f"batch of {batch_size} cannot be shared evenly by {hosts} hosts")
    share = batch_size // hosts
    # What comes over a network lies in the store's own cache.
    fits = not store.is_remote and held_bytes(store, cases) <= _HELD_BYTES
    reader = HeldFrames(store) if fits else store
    samples: Any = (
        grain.MapDataset.source(_CaseNumbers(len(cases)))
        .shuffle(seed=_seed_of(seed, _SHUFFLING))
        .repeat()
        .random_map(_Draw(reader, cases, config), seed=_seed_of(seed, _DRAWING))
    )
    first = first_batch * share
    batches = samples[host::hosts][first:].batch(share, drop_remainder=True)
    batches = batches.map_with_index(_SampleNumbers(share, first, host, hosts))
    batches = batches.map(_Cut(reader, cases, config))
    threads = _REMOTE_THREADS if store.is_remote else 1
    buffered = max(_BUFFERED_BATCHES, threads)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffered)
    dataset = batches.to_iter_dataset(options)
    if workers:
        _parse_flags()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_follow_parent
        )
    return iter(dataset)


def _seed_of(seed: int, purpose: int) -> int:
    return int(np.random.SeedSequence([seed, purpose]).generate_state(1)[0])


def _follow_parent(index: int, workers: int) -> None:
    """Let a worker process end with its parent, and by nothing else.

    Ctrl-C and SLURM signal all processes of a job: the run saves, and needs its next batch to get
    there. A parent that was killed tells its workers nothing.
    """
    del index, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(parent_process(),), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _parse_flags() -> None:
    """Grain's worker processes read absl flags, which nobody parses in a program without them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
