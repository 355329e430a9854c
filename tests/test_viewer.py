"""``penn view``: what the server answers, and that image and mask lie on each other on the page."""

import http.client
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image
from scipy.spatial.transform import Rotation

from penn_jax import viewer
from penn_jax.cli import main
from penn_jax.types import InputError
from penn_jax.viewer import serving

AFFINE = np.eye(4)
AFFINE[:3, :3] = Rotation.from_euler("xyz", (8, -15, 20), degrees=True).as_matrix()
AFFINE[:3, :3] *= (-0.9, 1.2, 2.0)  # oblique, and the first axis runs from right to left
AFFINE[:3, 3] = (20, -30, -28)
SHAPE = (41, 52, 30)
BLOCK = np.s_[12:29, 18:33, 9:20]
"""Holds the centre, where the page opens, but not in the middle: a flip would show."""


def save(path: Path, array, affine=AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def scan(tmp_path):
    array = np.full(SHAPE, 100, np.int16)
    array[BLOCK] = 1000
    array[2:6, 3:9, 2:6] = 600  # a corner that tells left from right
    return save(tmp_path / "Jane Roe T1.nii.gz", array)


@pytest.fixture
def mask(tmp_path):
    array = np.zeros(SHAPE, np.uint8)
    array[BLOCK] = 1
    return save(tmp_path / "mask.nii.gz", array)


@contextmanager
def served(image, masks):
    with serving(image, masks) as (server, address):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield address
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def page(scan, mask, tmp_path, monkeypatch):
    """Address of a page whose NiiVue is one line: enough for the server."""
    (tmp_path / "widget.js").write_text("export default {};")
    monkeypatch.setattr(viewer, "_niivue", lambda: tmp_path / "widget.js")
    with served(scan, [mask]) as address:
        yield address


def ask(address, path, method="GET", **headers):
    """Status, headers and content; the path is sent as it is written."""
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(address).port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read()
    connection.close()
    return found


def test_the_named_files_are_served_and_told_by_number(page, scan, mask):
    root = urlsplit(page).path
    for name, there in (("0.nii.gz", scan), ("1.nii.gz", mask)):
        status, headers, content = ask(page, root + name)
        assert (status, content) == (200, there.read_bytes())
        assert headers["Cache-Control"] == "no-store"
    status, headers, content = ask(page, root)
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert b"http" not in content


def test_masks_of_one_name_are_told_apart_by_their_folders(scan, mask, tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "_niivue", lambda: mask)
    (tmp_path / "labels").mkdir()
    other = save(tmp_path / "labels" / mask.name, np.zeros(SHAPE, np.uint8))
    another = save(tmp_path / "another.nii", np.zeros(SHAPE, np.uint8))
    with served(scan, [mask, other, another]) as address:
        scene = json.loads(ask(address, urlsplit(address).path + "scene.json")[2])
    assert [volume["name"] for volume in scene["volumes"][1:]] == [
        f"{tmp_path.name}/mask.nii.gz", "labels/mask.nii.gz", "another.nii"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/view.html", "/0.nii.gz", "/scene.json", "{token}x/", "{token}"),
        *("{token}/../0.nii.gz", "{token}/../../etc/passwd", "{token}//etc/passwd"),
        *("{token}/%2e%2e/%2e%2e/etc/passwd", "{token}/..%2f..%2fetc%2fpasswd"),
        *("{token}/2.nii.gz", "{token}/viewer.py", "{token}/Jane%20Roe%20T1.nii.gz", "{token}/\\x"),
    ],
)
def test_nothing_else_is(page, path):
    status, _, content = ask(page, path.format(token=urlsplit(page).path.rstrip("/")))
    assert status == 404
    assert b"root:" not in content


def test_other_hosts_and_methods_are_refused(page):
    path = urlsplit(page).path
    assert ask(page, path, Host="evil.example")[0] == 404
    assert ask(page, path, Host=f"localhost:{urlsplit(page).port}")[0] == 200
    for method in ("POST", "PUT", "DELETE", "HEAD"):
        assert ask(page, path, method)[0] == 501


def test_only_this_machine_is_answered_and_every_page_has_a_token_of_its_own(page, scan, mask):
    assert urlsplit(page).hostname == "127.0.0.1"
    assert len(urlsplit(page).path.strip("/")) >= 32
    with serving(scan, [mask]) as (server, other):
        assert server.server_address[0] == "127.0.0.1"
        assert urlsplit(other).path != urlsplit(page).path
    # What listens on every address would answer on this machine's other one, too.
    with socket.socket() as outside:
        outside.settimeout(5)
        assert outside.connect_ex(("127.0.0.2", urlsplit(page).port)) != 0


def test_requests_are_not_logged(page, capfd):
    ask(page, urlsplit(page).path)
    ask(page, "/nothing")
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_shown_is_one_line(scan, mask, tmp_path, monkeypatch, capsys):
    half = save(tmp_path / "half.nii.gz", np.full((4, 4, 4), 0.5, np.float32))
    with monkeypatch.context() as installed:
        installed.setattr(viewer, "_niivue", lambda: scan)
        with pytest.raises(InputError, match="no such file"), serving(tmp_path / "x.nii", [mask]):
            pass
        with pytest.raises(InputError, match="is not a whole number"), serving(scan, [half]):
            pass
    monkeypatch.setattr(viewer.importlib.util, "find_spec", lambda name: None)
    assert main(["view", str(scan), str(mask)]) == 2
    assert "pip install 'penn-jax[viewer]'" in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(page, scan, mask, capsys):
    assert main(["view", str(scan), str(mask), "--port", str(urlsplit(page).port)]) == 2
    assert "Address already in use" in capsys.readouterr().err


def test_ctrl_c_ends_it(scan, mask, tmp_path):
    code = (
        # As in a terminal: what starts the tests may have had Ctrl-C ignored.
        "import sys, pathlib, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from penn_jax import cli, viewer; "
        f"viewer._niivue = lambda: pathlib.Path({str(scan)!r}); sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "view", str(scan), str(mask)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            address = process.stdout.readline().decode().strip()
            assert ask(address, urlsplit(address).path)[0] == 200
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, error) == (0, b"")


# ---- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="the extra browser is missing")
    if viewer.importlib.util.find_spec("ipyniivue") is None:
        pytest.skip("the extra viewer is missing")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    # No GPU: WebGL is drawn by SwiftShader.
    options = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=[*options])
        yield browser
        browser.close()


def turned(path: Path, like: Path, codes: str) -> Path:
    """The same mask, stored along other axes."""
    image = nib.load(like)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    nib.save(image.as_reoriented(turn), path)
    return path


def near(pixels: np.ndarray, colour, within=12) -> np.ndarray:
    return (np.abs(pixels.astype(int) - colour) <= within).all(-1)


def test_image_and_masks_lie_on_each_other_pixel_by_pixel(chromium, scan, mask, tmp_path):
    other = turned(tmp_path / "turned.nii", mask, "SPR")
    array = np.asarray(nib.load(mask).dataobj)
    moved = save(tmp_path / "moved.nii", np.roll(array, 1, axis=(0, 1, 2)))
    said, asked = [], []
    with served(scan, [mask, other, moved]) as address:
        page = chromium.new_page(viewport={"width": 700, "height": 500})
        page.on("console", lambda message: said.append((message.type, message.text)))
        page.on("pageerror", lambda error: said.append(("error", str(error))))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("body[data-shown]", timeout=60_000)
        sliders = page.locator("input[type=range]")
        assert sliders.count() == 3

        def shown(number):
            """The canvas with the scan and, where a number is given, that mask over it."""
            for i in range(3):
                sliders.nth(i).fill("1" if i == number else "0")
            picture = page.locator("canvas").screenshot()
            return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))

        for plane in ("0", "1", "2"):
            page.locator("#slices").select_option(plane)
            block = near(shown(None), (255, 255, 255), within=40)
            assert block.sum() > 2000
            for number in (0, 1):
                overlay = near(shown(number), viewer._COLOURS[number])
                # The cross over both has soft edges: a pixel may be told from its colour or not.
                assert (overlay != block).sum() <= 10
            # The comparison sees a mask that is one voxel off.
            off = near(shown(2), viewer._COLOURS[2])
            assert (off != block).sum() > 0.02 * block.sum()
        place = page.locator("#place")
        before = place.text_content()
        page.locator("canvas").click(position={"x": 350, "y": 220})
        page.wait_for_function(
            "old => document.getElementById('place').textContent !== old", arg=before
        )
        page.close()
    assert [line for line in said if line[0] == "error"] == []
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert outside == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_keeps_nobody_out(chromium, serious_faults, scan, mask, width):
    with served(scan, [mask, mask]) as address:
        page = chromium.new_page(viewport={"width": width, "height": 844})
        page.goto(address)
        page.wait_for_selector("body[data-shown]", timeout=60_000)
        assert serious_faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()
