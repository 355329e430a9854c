"""The documentation is what the program does: links, commands, the tutorial, the built site."""

import ast
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from penn_jax.cli import main
from penn_jax.config import Config
from penn_jax.config_file import overridden
from penn_jax.data.phantom import write_dataset
from penn_jax.options import build_parser

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
READ = [*PAGES, ROOT / "README.md", *sorted((ROOT / "launch").glob("*.md"))]
BLOCK = re.compile(
    r"^(?: *)```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^ *```", re.MULTILINE | re.DOTALL
)


def _name(path):
    return str(path.relative_to(ROOT))


def _text(path):
    return path.read_text(encoding="utf-8")


def _blocks(path):
    """(language, title, text) of each fenced block of a page, in order."""
    return [match.groups() for match in BLOCK.finditer(_text(path))]


def _shell_lines(text):
    """The commands of a shell script, without comments and continued lines put together."""
    lines = text.replace("\\\n", " ").splitlines()
    return [part for line in lines for part in re.split(r"&&", line.split(" #")[0]) if part.strip()]


def _penn_words(line):
    """The words of a command after ``penn``; None where it is another command."""
    words = shlex.split(line.split(">")[0], comments=True)
    return words[1:] if words and Path(words[0]).name == "penn" else None


def _commands():
    """Every ``penn …`` that is shown to be copied: in pages and in the configs' docstrings."""
    for path in READ:
        for language, _, text in _blocks(path):
            if language == "bash":
                yield from ((_name(path), line.strip()) for line in _shell_lines(text))
    for path in sorted((ROOT / "configs").rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(_text(path))) or ""
        for line in _shell_lines(docstring):
            if line.startswith("penn "):
                yield _name(path), line


SHOWN = [(page, line) for page, line in _commands() if _penn_words(line) is not None]


def _subparsers():
    return next(part.choices for part in build_parser()._actions if part.choices)


def _is_config_value(option):
    section, _, name = option.removeprefix("--").replace("-", "_").partition(".")
    return hasattr(getattr(Config(), section, None), name)


# ---- links and names --------------------------------------------------------------------------


@pytest.mark.parametrize("page", READ, ids=_name)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", _text(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|#|mailto:", target):
            continue  # headings are checked by the strict build
        there = (page.parent / target.split("#")[0]).resolve()
        assert there.is_file(), f"{target} in {_name(page)}"
        if page in PAGES:
            assert there.is_relative_to(DOCS), f"{target} is not part of the site"


@pytest.mark.parametrize("page", READ, ids=_name)
def test_files_that_are_named_exist(page):
    examples = {title for _, title, _ in _blocks(page) if title}
    folders = "penn_jax|benchmarks|tests|configs|launch"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+\.(?:py|md|sh|yaml|sbatch))", _text(page)):
        assert (ROOT / name).exists() or name in examples, f"{name} in {_name(page)}"


# ---- commands ---------------------------------------------------------------------------------


def test_commands_are_found():
    pages = {page for page, _ in SHOWN}
    assert {"README.md", "docs/tutorial.md", "docs/export.md", "configs/spine_t1.py"} <= pages
    assert len(SHOWN) > 40


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=lambda text: text)
def test_commands_that_are_shown_parse(page, line):
    options, rest = build_parser().parse_known_args(_penn_words(line))
    assert options.takes_config or not rest
    overridden(Config(), rest)
    config = str(getattr(options, "config", ""))
    if config.startswith("configs/") and not (ROOT / config).is_file():
        assert config in {title for _, title, _ in _blocks(ROOT / page)}, f"no {config}"


@pytest.mark.parametrize("page", READ, ids=_name)
def test_commands_and_options_in_the_text_exist(page):
    text = BLOCK.sub("", _text(page))
    known = _subparsers()
    for code in re.findall(r"`penn ([^`]+)`", text):
        command, *words = code.split()
        if not re.fullmatch("[a-z]+", command):
            continue  # a placeholder
        assert command in known, f"penn {code}"
        for option in re.findall(r"--[a-z][a-z-]*(?:\.[a-z-]+)?", " ".join(words)):
            there = option in known[command]._option_string_actions
            assert there or _is_config_value(option), f"{option} of penn {command}"
    for option in re.findall(r"`(--[a-z]+\.[a-z-]+)[ `]", text):
        assert _is_config_value(option), option


def test_the_page_of_commands_has_them_all():
    (parsers,) = (part for part in build_parser()._actions if part.choices)
    rows = re.findall(r"^\| `penn (\w+)` \| (.+) \|$", _text(DOCS / "reference/commands.md"), re.M)
    assert rows == [(action.dest, action.help) for action in parsers._choices_actions]


# ---- Python -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in READ if "```python" in _text(page)], ids=_name)
def test_python_that_is_shown_is_right(page, tmp_path):
    for language, title, text in _blocks(page):
        if language != "python":
            continue
        imports = [
            node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        exec(compile(ast.Module(imports, []), _name(page), "exec"), {})
        if "config = " in text:
            (tmp_path / "config.py").write_text(text, encoding="utf-8")
            assert isinstance(runpy.run_path(str(tmp_path / "config.py"))["config"], Config), title


# ---- the ways of a newcomer -------------------------------------------------------------------


def _run(line, folder):
    words = _penn_words(line)
    if words is not None:
        assert main(words) == 0, line
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-euc", line], cwd=folder, env=environment, check=True)


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for language, title, text in _blocks(DOCS / "tutorial.md"):
        if title:
            (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / title).write_text(text, encoding="utf-8")
        elif language == "bash":
            for line in _shell_lines(text):
                _run(line.strip(), tmp_path)
    made = tmp_path / "tutorial"
    masks = sorted(made.glob("masks/*.nii.gz"))
    assert len(masks) == 4
    for mask in masks:
        again = nib.load(made / "masks_of_export" / mask.name)
        np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj), np.asarray(again.dataobj))
    # 0.53 on two AMD EPYC cores: the network has learnt something.
    assert json.loads(_text(made / "metrics.json"))["mean"]["dice"]["value"] > 0.2
    for name in ("run.html", "masks.html", "exported/README.md", "pretrained/restoration.png"):
        assert (made / name).stat().st_size > 1000


@pytest.mark.slow
def test_masks_of_ones_own_scans_take_five_commands(tmp_path, monkeypatch):
    page = _text(DOCS / "quickstart.md")
    block = BLOCK.search(page.split("<!-- five commands -->")[1])
    assert block is not None
    lines = [line.strip() for line in _shell_lines(block[3])]
    assert len(lines) == 5
    write_dataset(tmp_path / "raw", 3, seed=0, shape=(48, 48, 4), spacing=(4.0, 4.0, 8.0))
    (tmp_path / "scans/images").mkdir(parents=True)
    (tmp_path / "new_scans").mkdir()
    for scan in sorted(tmp_path.glob("raw/imagesTr/*")):
        scan.rename(tmp_path / "scans/images" / scan.name.replace("_0000", ""))
    (tmp_path / "raw/labelsTr").rename(tmp_path / "scans/labels")
    first = sorted(tmp_path.glob("scans/images/*"))[0]
    (tmp_path / "new_scans" / first.name).write_bytes(first.read_bytes())
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for line in lines[2:]:  # the first two install
        # The one change: two steps in place of five minutes.
        _run(f"{line} --max-steps 2" if " train " in line else line, tmp_path)
    assert nib.load(tmp_path / "masks" / first.name).shape == nib.load(first).shape


# ---- the site ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    answer = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        # Its makers' advertisement, not a warning about these pages.
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "WARNING" not in answer.stderr
    return folder


def test_the_site_builds_without_a_warning(site):
    built = {path.relative_to(site).with_suffix(".md") for path in site.rglob("*.html")}
    assert {page.relative_to(DOCS) for page in PAGES} <= built


def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        html = _text(page)
        assert not re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//", html), page
        assert not re.findall(r"<link[^>]*\shref=\"?(?:https?:)?//", html), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", _text(sheet)), sheet


def test_the_reference_shows_docstrings(site):
    html = _text(site / "reference/api.html")
    for name in ("penn_jax.train.train", "penn_jax.optim.sgd.build_optimiser"):
        assert f'id="{name}"' in html
    assert "InputError" in html
    assert 'id="penn_jax.config.OptimConfig.clip"' in _text(site / "reference/config.html")
