"""What every page must be, whatever is on it."""

import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise, product

import pytest

_VOID = {"meta", "input", "br", "hr", "img", "link"}


class Reader(HTMLParser):
    """Takes a page apart and refuses tags that do not close in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self._open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def read_page():
    """Checks that a page is one file, sound and labelled, and returns it taken apart."""

    def read(html):
        reader = Reader()
        reader.feed(html)
        assert not reader._open
        assert len(html.encode()) < 5_000_000
        # Nothing is fetched: what is referred to is on the page or a data URI.
        for _, attributes in reader.tags:
            for name in ("src", "href", "xlink:href"):
                assert re.match("#|data:image/", attributes.get(name) or "#")
        assert "@import" not in html
        assert set(re.findall(r"url\(([^)]*)\)", html)) <= {
            f"#{i}" for i in re.findall(r'\bid="([^"]*)"', html)
        }
        ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        for link in reader.all("a"):
            assert link["href"][1:] in ids
        levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert all("scope" in header for header in reader.all("th"))
        for picture in reader.all("svg"):
            assert picture.get("aria-hidden") == "true" or picture["aria-label"]
        assert reader.all("html")[0]["lang"] == "en"
        assert any(meta.get("name") == "viewport" for meta in reader.all("meta"))
        return reader

    return read


@pytest.fixture(scope="module")  # Playwright's loop ends with it: another module may start one
def browser():
    """Chromium, where it and the extra ``browser`` are installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the extra browser is missing")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened_page(browser, serious_faults, tmp_path):
    """Opens a page on phone and desktop, in light and dark, and finds nothing wrong with it."""
    path = tmp_path / "page.html"

    def open_it(html):
        path.write_text(html, encoding="utf-8")
        page = None
        for width, scheme in product((390, 1280), ("light", "dark")):
            context = browser.new_context(
                viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True
            )
            page = context.new_page()
            wrong = []
            page.on("console", lambda message, wrong=wrong: wrong.append(message.text))
            page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert serious_faults(page) == []
            assert wrong == []
        return page

    return open_it
