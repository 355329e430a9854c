"""When a training process asks for huge pages, and that it is the same process after."""

import os
import subprocess
import sys

import pytest

from penn_jax.huge_pages import wanted

ASKED = "always [madvise] never\n"


@pytest.mark.parametrize(
    ("setting", "before", "after"),
    [
        (ASKED, None, "glibc.malloc.hugetlb=1"),
        (ASKED, "glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        (ASKED, "glibc.malloc.hugetlb=0", None),
        ("[always] madvise never\n", None, None),
        ("always madvise [never]\n", None, None),
    ],
)
def test_the_users_choice_and_the_kernels_stand(tmp_path, setting, before, after):
    file = tmp_path / "enabled"
    file.write_text(setting)
    assert wanted({} if before is None else {"GLIBC_TUNABLES": before}, file) == after


def test_where_there_is_no_such_setting(tmp_path):
    assert wanted({}, tmp_path / "enabled") is None


def _lines(tmp_path, before="", stdin=None):
    """What a program prints that asks for huge pages, where ``before`` comes first in it."""
    file = tmp_path / "enabled"
    file.write_text(ASKED)
    program = f"""
import os, pathlib, sys
from penn_jax import huge_pages
huge_pages._SETTING = pathlib.Path({str(file)!r})
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), flush=True)
{before}
huge_pages.start_with_huge_pages()
print("on")
"""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, *(["-"] if stdin else ["-c", program]), "an argument"]
    said = subprocess.run(
        command,
        input=program if stdin else None,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.splitlines()


def test_the_command_starts_anew_once_as_the_same_process(tmp_path):
    first, second, end = _lines(tmp_path)
    assert end == "on"
    assert first.endswith(" ['an argument'] None")
    assert second == first.replace("None", "glibc.malloc.hugetlb=1")


def test_once_is_enough_where_the_variable_does_not_survive(tmp_path):
    first, second, end = _lines(tmp_path, "os.environ.pop('GLIBC_TUNABLES', None)")
    assert end == "on"
    assert second == first.replace("None", "glibc.malloc.hugetlb=1")


@pytest.mark.parametrize(
    "before",
    [
        "sys.executable = '/no/such/python'",
        "sys.executable = ''",
        "sys.argv = ['penn', 'train']",  # as a notebook would
    ],
)
def test_where_the_process_cannot_be_started_anew_it_goes_on(tmp_path, before):
    first, end = _lines(tmp_path, before)
    assert first.endswith("None")
    assert end == "on"


def test_a_script_read_from_stdin_is_not_begun_again(tmp_path):
    assert len(_lines(tmp_path, stdin=True)) == 2
