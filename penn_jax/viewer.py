"""``penn view``: a scan and its masks in the browser, served to this machine alone.

The page is our own; what draws is NiiVue, read from the installed package ``ipyniivue``, which
bundles it for notebooks. Nothing is fetched from elsewhere.
"""

from __future__ import annotations

import importlib.util
import io
import json
import secrets
import shutil
import tempfile
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from penn_jax.data.volume import read_geometry, read_image, read_labels, write_image
from penn_jax.types import InputError

_PAGE = Path(__file__).parent / "report" / "templates"
_HTML, _CSS, _JS = "text/html; charset=utf-8", "text/css", "text/javascript"
_HOST = "127.0.0.1"

_COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((213, 94, 0), (204, 121, 167), (79, 140, 255)),
)
"""Okabe and Ito's palette, in an order that shows on grey."""

_POLICY = (
    "default-src 'none'; script-src 'self'; "
    "connect-src 'self' data: blob:; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "font-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: its own files. NiiVue carries a font, shaders and pictures as data."""


def view(image: Path, masks: Sequence[Path], port: int = 0, browser: bool = False) -> None:
    """Serve a page with a scan and its masks until Ctrl-C.

    Args:
        image: NIfTI, or a folder of one DICOM series.
        masks: NIfTI label maps, shown over it in their own place in space.
        port: to listen on; 0 takes a free one.
        browser: open the page in this machine's browser.

    Raises:
        InputError: a file cannot be read, or ipyniivue is not installed.
        OSError: the port is taken.
    """
    with serving(image, masks, port) as (server, address):
        print(f"{address}\nanswers this machine only; Ctrl-C ends it", flush=True)
        if browser:
            webbrowser.open(address)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


@contextmanager
def serving(
    image: Path, masks: Sequence[Path], port: int = 0
) -> Iterator[tuple[ThreadingHTTPServer, str]]:
    """A server of the page, not yet started, and its address; arguments as for :func:`view`."""
    niivue = _niivue()
    with tempfile.TemporaryDirectory() as folder:
        scene, files = _scene(image, masks, Path(folder))
        routes: dict[str, tuple[Path | bytes, str]] = {
            "": (_PAGE / "view.html", _HTML),
            "view.css": (_PAGE / "view.css", _CSS),
            "view.js": (_PAGE / "view.js", _JS),
            "niivue.js": (niivue, _JS),
            "scene.json": (json.dumps(scene).encode(), "application/json"),
            **{name: (path, "application/octet-stream") for name, path in files.items()},
        }
        token = secrets.token_urlsafe(24)
        with ThreadingHTTPServer((_HOST, port), _handler(token, routes)) as server:
            yield server, f"http://{_HOST}:{server.server_address[1]}/{token}/"


def _niivue() -> Path:
    found = importlib.util.find_spec("ipyniivue")
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(folder) / "static" / "widget.js").is_file():
            return path
    raise InputError(
        "penn view", "NiiVue is not installed", "ipyniivue", "pip install 'penn-jax[viewer]'"
    )


def _scene(
    image: Path, masks: Sequence[Path], folder: Path
) -> tuple[dict[str, Any], dict[str, Path]]:
    """What the page shows, and the files by the names under which it asks for them."""
    files: dict[str, Path] = {}

    def serve(path: Path) -> str:
        # NiiVue tells packed files by their names; ours tell nothing of the patient.
        name = f"{len(files)}{'.nii.gz' if path.name.endswith('.gz') else '.nii'}"
        files[name] = path
        return name

    if image.is_dir():
        scan = read_image([image])
        converted = folder / "scan.nii.gz"
        write_image(converted, scan.array[..., 0], scan.affine)
        volumes: list[dict[str, Any]] = [{"name": image.name, "file": serve(converted)}]
    else:
        read_geometry(image)
        volumes = [{"name": image.name, "file": serve(image)}]
    for number, (mask, name) in enumerate(zip(masks, _told_apart(masks), strict=True)):
        largest = int(read_labels(mask).array.max())
        volumes.append(
            {
                "name": name,
                "file": serve(mask),
                # Masks of one class differ by their colours.
                "colours": [_COLOURS[(number + i) % len(_COLOURS)] for i in range(max(1, largest))],
            }
        )
    return {"title": image.name, "volumes": volumes}, files


def _told_apart(paths: Sequence[Path]) -> list[str]:
    """File names, with the folder where two are alike, as of a mask and its reference."""
    names = [path.name for path in paths]
    return [
        name if names.count(name) == 1 else f"{path.resolve().parent.name}/{name}"
        for path, name in zip(paths, names, strict=True)
    ]


def _handler(
    token: str, routes: Mapping[str, tuple[Path | bytes, str]]
) -> type[BaseHTTPRequestHandler]:
    """Answers for the routes below the token, and for nothing else: names, never paths."""

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "penn", ""

        def do_GET(self) -> None:
            # Another site's page may reach this port by a name of its own, but not by this one.
            port = self.connection.getsockname()[1]
            meant = self.headers.get("Host") in (f"{_HOST}:{port}", f"localhost:{port}")
            asked, slash, name = self.path.removeprefix("/").partition("/")
            known = secrets.compare_digest(asked.encode(), token.encode()) and slash
            if not (meant and known and name in routes):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            content, kind = routes[name]
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as body:
                self._answer(body, kind)

        def _answer(self, body: BinaryIO, kind: str) -> None:
            length = body.seek(0, io.SEEK_END)
            body.seek(0)
            self.send_response(HTTPStatus.OK)
            for field, value in (
                ("Content-Type", kind),
                ("Content-Length", str(length)),
                ("Content-Security-Policy", _POLICY),
                ("Cache-Control", "no-store"),
                ("Referrer-Policy", "no-referrer"),
                ("X-Content-Type-Options", "nosniff"),
                ("Cross-Origin-Resource-Policy", "same-origin"),
            ):
                self.send_header(field, value)
            self.end_headers()
            with suppress(ConnectionError):  # the page was closed
                shutil.copyfileobj(body, self.wfile)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the address holds the token."""

    return Handler
