"""Several processes that train one network: how they find each other, and how they part.

Each host runs the same command. On SLURM, under Open MPI and on TPU pods jax finds the others by
itself; elsewhere ``--coordinator``, ``--processes`` and ``--process`` say who they are. Where there
is one process nothing here does anything. What they do together once they have met is in
``together.py``; what is promised, in ``docs/hosts.md``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from importlib import util
from typing import Any

from penn_jax.types import InputError, LostError

EXIT_LOST = 69
"""Another process is gone: ``--resume`` goes on (``EX_UNAVAILABLE`` of sysexits.h)."""

_GATHERING = 300
"""Seconds in which all processes must have started."""
_SILENCE = 30
"""Seconds without a sign of life after which a process counts as lost."""
_PARTING = 30
"""Seconds in which all processes must have ended, once one has."""
_GRACE = 3.0
"""Seconds in which a process may tell of an error of its own before it ends for a lost one."""
_LAST_OUT = 1.0
"""Seconds that process 0 stays: jax aborts the others when it goes, who may be ending likewise."""
_LOST = (
    "another process of this run is gone, and this one ends, too; if none says why, go on with "
    "--resume from the last checkpoint"
)

_several = False


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Iterator[None]:
    """Meet the other processes of this run, if there are any, and part from them at the end.

    Args:
        coordinator: ``host:port`` of process 0, where the processes meet; None where a launcher
            that jax knows has started them.
        processes: how many there are; 1 does not look for a launcher.
        process: number of this one, from 0.

    Raises:
        InputError: the numbers do not fit, or the others did not come.
        LostError: another process is gone.
    """
    given = _checked(coordinator, processes, process)
    if given is None and (processes == 1 or not _may_have_company()):
        yield
        return
    _meet(given)
    import jax

    from penn_jax.together import wait_for_all  # before the others are waited for: it takes time

    global _several
    _several = jax.process_count() > 1
    if _several:
        ctypes.CDLL(None).signal(signal.SIGABRT, _tell_of_abort)
    try:
        wait_for_all()  # gloo gives up after half a minute: now all are here
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if _several and _tells_of_a_loss(error):
            raise LostError(f"{_LOST} ({_first_line(error)})") from error
        raise
    _several = False
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # all is saved by now
        jax.distributed.shutdown()


def refuse_several() -> None:
    """Refuse a command that does not share its work with other processes.

    Raises:
        InputError: SLURM or Open MPI started this process as one of several.
    """
    if _tasks() > 1:
        raise InputError(
            "this command",
            f"was started {_tasks()} times at once",
            "one process; penn train, pretrain and study are for several",
            "start one task",
        )


def end(code: int) -> int:
    """The exit code of a command that failed; among several processes, end with it at once.

    An orderly end would wait for the others, who wait for this one in the middle of a step.
    """
    if _several:
        sys.stdout.flush()
        sys.stderr.flush()
        import jax

        if jax.process_index() == 0:
            time.sleep(_LAST_OUT)
        os._exit(code)
    return code


def _checked(
    coordinator: str | None, processes: int | None, process: int | None
) -> dict[str, Any] | None:
    """The arguments of ``jax.distributed.initialize``; None where none is given."""
    if coordinator is None and process is None and processes in (None, 1):
        return None
    if coordinator is None or processes is None or process is None:
        raise InputError(
            "--coordinator, --processes, --process",
            "some are given and some are not",
            "all three, or none on SLURM and TPU pods",
            "give all three to each process",
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise InputError("--coordinator", coordinator, "host:port of process 0", "correct it")
    if not 0 <= process < processes:
        raise InputError(
            "--process", f"{process}", f"0 to {processes - 1}, as --processes says", "correct it"
        )
    return {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }


def _tasks() -> int:
    """Processes that SLURM or Open MPI started as this one; 1 where neither did."""
    slurm = os.environ.get("SLURM_NTASKS", "1") if "SLURM_STEP_NODELIST" in os.environ else "1"
    return int(os.environ.get("OMPI_COMM_WORLD_SIZE", slurm))


def _may_have_company() -> bool:
    """Whether a launcher that jax knows may have started this process as one of several.

    A task alone is left alone: jax would show it one GPU of all that it has.
    """
    on_tpu = "SLURM_STEP_NODELIST" not in os.environ and util.find_spec("libtpu") is not None
    return _tasks() > 1 or on_tpu


def _meet(given: dict[str, Any] | None) -> None:
    import jax

    # It would take SIGTERM, which signals.py collects.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **(given or {}),
            initialization_timeout=_GATHERING,
            heartbeat_timeout_seconds=_SILENCE,
            shutdown_timeout_seconds=_PARTING,
        )
    except ValueError as error:
        if given is None and "should be defined" in str(error):
            return  # no launcher after all
        raise
    except RuntimeError as error:
        where = given["coordinator_address"] if given else "the launcher's coordinator"
        raise InputError(
            where,
            f"the processes did not meet ({_first_line(error)})",
            f"all of them within {_GATHERING} s, and a free port at process 0",
            "start them all, and check the address",
        ) from error


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _tell_of_abort(_: int) -> None:
    """Say in one line, with our exit code, that jax's runtime ends this process.

    It aborts a process whose coordinator is gone or says that another one is, in a thread of its
    own and whatever the process waits for. No exception comes of it, nor does Python handle the
    signal in time: the C library has to call this.
    """
    time.sleep(_GRACE)  # the main thread may know more, and say it
    os.write(2, f"penn: error: {_LOST}\n".encode())
    os._exit(EXIT_LOST)


def _tells_of_a_loss(error: Exception) -> bool:
    text = str(error)  # jax raises a ValueError, too, for what gloo could not do
    return "Gloo" in text or text.startswith(("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED"))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
