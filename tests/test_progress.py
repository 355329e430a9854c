"""What a terminal shows, and what stays off it."""

import io
import json
import re
import time

import pytest
from rich.table import Table

from penn_jax.progress import Outcome, bar, say, tell


class Terminal(io.StringIO):
    """Takes what is drawn, as text without the codes that move and colour it."""

    def isatty(self):
        return True

    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


def a_terminal(monkeypatch):
    """Called by the test itself: between its fixtures and it pytest takes stderr anew."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    return screen


def test_a_bar_shows_its_note_and_the_time_left(monkeypatch):
    terminal = a_terminal(monkeypatch)
    with bar("spine [1]") as shown:
        for number in range(1, 5):
            shown.update(number / 100, f"32 patches/s  loss 0.{number}  validation Dice 0.9")
            time.sleep(0.15)  # it is drawn ten times a second
    text = terminal.text()
    assert "spine [1]" in text  # no mark of rich
    assert "32 patches/s  loss 0.4  validation Dice 0.9" in text
    assert "-:--:--" in text  # before there is a speed
    # 96 steps are left of 0.15 s each, and a little more on a busy machine.
    minutes, seconds = map(int, re.findall(r"0:(\d\d):(\d\d)", text)[-1])
    assert 14 <= 60 * minutes + seconds <= 120


def test_a_resumed_run_is_not_taken_for_a_fast_one(monkeypatch):
    terminal = a_terminal(monkeypatch)
    with bar("resumed") as shown:
        for share in (0.90, 0.901, 0.902):  # the first nine tenths were done before
            shown.update(share)
            time.sleep(0.15)
    minutes, seconds = map(int, re.findall(r"0:(\d\d):(\d\d)", terminal.text())[-1])
    assert 14 <= 60 * minutes + seconds <= 120


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_drawn_off_a_terminal_or_where_it_is_not_wanted(monkeypatch, enabled):
    terminal = a_terminal(monkeypatch)
    if enabled:
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    with bar("a", enabled) as shown:
        shown.update(0.5, "half")
    say("one line", enabled)
    assert terminal.getvalue() == ("one line\n" if enabled else "")


def test_the_end_is_told_to_a_person_or_to_a_program(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("Metric", "Value")
    table.add_row("Dice", "90.7")
    path = "a folder [of] " + 60 * "x"
    outcome = Outcome({"dice": 0.907, "label": None, "path": path}, (table, path))
    tell(outcome, as_json=False)
    drawn, line, _ = capsys.readouterr().out.rsplit("\n", 2)
    assert "90.7" in drawn
    assert line == path  # neither broken nor read as marks
    tell(outcome, as_json=True)
    assert json.loads(capsys.readouterr().out) == outcome.result
