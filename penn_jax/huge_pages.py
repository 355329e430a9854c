"""Memory in huge pages for programs that train.

XLA's CPU takes the memory of a step's intermediate values anew each step, a fault for every 4 KiB
of it; in pages of 2 MiB the faults are next to none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"


def start_with_huge_pages() -> None:
    """Start this very command anew, as the same process, where that makes malloc ask for them.

    glibc reads what it is told when a process begins. Nothing happens where the kernel gives huge
    pages to all or to none, or where the user has chosen.
    """
    tunables = wanted(os.environ, _SETTING)
    if tunables is not None:
        os.environ[_TUNABLES] = tunables
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
