"""The frame of a page, plots and images in it."""

import base64
import io
import re

import jinja2
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from penn_jax.report.html import INK, SERIES, image_uri, page, svg, write_page
from penn_jax.report.slices import MOST_SLICES


def plot(title="a & <b>"):
    figure = Figure()
    axes = figure.subplots()
    axes.set_title(title, color=INK)
    axes.plot([0, 1], [0, 1], color=SERIES[1], marker="o")
    return figure


def test_what_a_template_is_given_is_escaped_and_must_be_there():
    html = page("page.html", title="<script>alert(1)</script> & more", sections={"a": "A < B"})
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in html
    assert "A &lt; B" in html
    with pytest.raises(jinja2.UndefinedError, match="sections"):
        page("page.html", title="no sections")


def test_a_page_may_load_nothing():
    html = page("page.html", title="t", sections={})
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert not any("http" in rule or "'self'" in rule for rule in rules.values())


def test_a_plot_takes_the_colours_of_its_page_and_keeps_its_text():
    text = svg(plot(), "curve", 'Dice "over" steps')
    assert INK not in text
    assert SERIES[1] not in text
    assert "var(--series-2)" in text
    assert "currentColor" in text
    assert "a &amp; &lt;b&gt;</text>" in text
    assert 'role="img" aria-label="Dice &quot;over&quot; steps"' in text
    assert text.startswith("<svg viewBox=")
    assert text.endswith("</svg>")


def test_plots_of_one_page_share_no_name():
    first, second = (svg(plot(), name, "") for name in ("one", "two"))
    names = [set(re.findall(r'\bid="([^"]*)"', text)) for text in (first, second)]
    assert names[0]
    assert not names[0] & names[1]
    for text, known in zip((first, second), names, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^)"]*)', text)) <= known
    assert svg(plot(), "one", "") == first  # the same figure gives the same bytes


def test_an_image_is_kept_but_for_its_size():
    rows, columns = np.mgrid[:300, :600]
    grey = (127 + 100 * np.sin(rows / 40) * np.cos(columns / 50)).astype(np.uint8)
    kind, text = image_uri(grey).split(",")
    assert kind == "data:image/webp;base64"
    back = Image.open(io.BytesIO(base64.b64decode(text))).convert("L")
    assert back.size == (352, 176)  # the longer side is 352 at most, the shape stays
    expected = Image.fromarray(grey).resize((352, 176), Image.Resampling.BICUBIC)
    error = np.abs(np.asarray(back, float) - np.asarray(expected, float))
    assert error.mean() < 2  # of 255: lossy, but not visibly so
    small = Image.open(io.BytesIO(base64.b64decode(image_uri(grey[:20, :30]).split(",")[1])))
    assert small.size == (30, 20)


def test_as_many_pictures_as_a_page_may_have_stay_below_five_megabytes():
    noise = np.random.default_rng(0).normal(127, 60, (352, 352)).clip(0, 255).astype(np.uint8)
    assert 3 * MOST_SLICES * len(image_uri(noise)) < 4_600_000  # the rest is text and plots


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.html"
    write_page(path, "grün")
    assert path.read_text(encoding="utf-8") == "grün"
    with pytest.raises(UnicodeEncodeError):
        write_page(path, "half \ud800")
    assert path.read_text(encoding="utf-8") == "grün"
    assert list(tmp_path.iterdir()) == [path]
