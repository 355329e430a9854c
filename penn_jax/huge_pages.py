"""Memory in huge pages for programs that train.

XLA's CPU takes the memory of a step's intermediate values anew each step, with a fault for every
4 KiB of it; in pages of 2 MiB the faults are next to none.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"
_STARTED = "penn_started_anew"
"""An ``-X`` option of the interpreter: the variable may not survive, and once is enough."""


def start_with_huge_pages() -> None:
    """Start this very command anew, as the same process, so that malloc asks for them.

    glibc (2.35 or later) reads what it is told when a process begins. Nothing happens where Linux
    gives huge pages to all programs or to none, where the user has chosen, where another program
    than the command line called, or where a process cannot be started.
    """
    tunables = wanted(os.environ, _SETTING)
    if tunables is None or _STARTED in sys._xoptions or not _is_own_process():
        return
    command = [sys.executable, "-X", _STARTED, *sys.orig_argv[1:]]
    with contextlib.suppress(OSError):
        os.execve(sys.executable, command, {**os.environ, _TUNABLES: tunables})


def wanted(environment: Mapping[str, str], setting: Path) -> str | None:
    """What ``GLIBC_TUNABLES`` should be; None where it should stay as it is.

    Args:
        environment: of this process.
        setting: the kernel's file, as ``always [madvise] never``.
    """
    before = environment.get(_TUNABLES, "")
    try:
        asked = "[madvise]" in setting.read_text()
    except OSError:  # not Linux, or a kernel without them
        return None
    if not asked or _TUNABLE in before:
        return None
    return ":".join(filter(None, (before, f"{_TUNABLE}=1")))


def _is_own_process() -> bool:
    """Whether the process was started with the arguments that it has now, and no script on stdin.

    A notebook or a test that calls the command line with ``sys.argv`` of its own was not.
    """
    script, arguments = sys.argv[0], sys.argv[1:]
    begun_with = sys.orig_argv[len(sys.orig_argv) - len(arguments) :]
    return bool(sys.executable) and script not in ("", "-") and begun_with == arguments
