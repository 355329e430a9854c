"""The frame of every page: one HTML file that needs no network, no font and no library.

Templates are in ``templates/``; what they are given is escaped unless it was drawn here. Plots are
inline SVG whose colours are the page's own, so that they follow its light and dark form.
"""

from __future__ import annotations

import base64
import io
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

INK = "#1c2128"
"""Text and axes of a plot; on a page the colour of its text."""

SERIES = ("#0072b2", "#c65300", "#1b7f4b", "#a3327a", "#8a6d00", "#5a52c7", "#5c6670")
"""Lines and markers of a plot; on a page ``--series-1`` to ``--series-7`` of ``page.css``."""

_XLINK = "http://www.w3.org/1999/xlink"
_WEBP_QUALITY = 60
_LONGEST = 352  # pixels of a side of an image: with its slices a page stays below 5 MB

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(template: str, **values: Any) -> str:
    """A whole page.

    Args:
        template: file name in ``templates/``.
        values: what it names; a name that is missing is an error.
    """
    return _TEMPLATES.get_template(template).render(values)


def write_page(path: Path, text: str) -> None:
    """Write a page so that a reader sees the old file or the whole new one.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def svg(figure: Figure, name: str, description: str) -> str:
    """A figure as an SVG element to stand in a page.

    Text stays text, in the page's font; ``INK`` and ``SERIES`` become the page's colours.

    Args:
        figure: with a transparent ground.
        name: unlike that of any other plot of the page: what is referred to inside begins with it.
        description: what a reader who cannot see the plot is told.
    """
    written = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor")
    for number, colour in enumerate(SERIES, start=1):
        text = text.replace(colour, f"var(--series-{number})")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None  # matplotlib always writes one
    label = escape(description, quote=True)
    opening = f'<svg {box[0]} role="img" aria-label="{label}" xmlns:xlink="{_XLINK}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1).strip()


def image_uri(grey: UInt8[np.ndarray, "rows columns"]) -> str:
    """A grey image as a data URI (WebP), made smaller where it is large."""
    written = io.BytesIO()
    image = Image.fromarray(grey)
    image.thumbnail((_LONGEST, _LONGEST))
    image.save(written, "webp", quality=_WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"
