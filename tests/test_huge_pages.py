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


def test_the_command_starts_anew_once_as_the_same_process(tmp_path):
    file = tmp_path / "enabled"
    file.write_text(ASKED)
    program = f"""
import os, pathlib, sys
from penn_jax import huge_pages
huge_pages._SETTING = pathlib.Path({str(file)!r})
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), flush=True)
huge_pages.start_with_huge_pages()
print("on")
"""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", program, "an argument"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second, end = said.stdout.splitlines()
    assert end == "on"
    assert first.endswith(" ['an argument'] None")
    assert second == first.replace("None", "glibc.malloc.hugetlb=1")
