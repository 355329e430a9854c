"""The command ``penn``: arguments in, one command, its result or one line of what is wrong."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from penn_jax.distributed import EXIT_LOST, end
from penn_jax.huge_pages import start_with_huge_pages
from penn_jax.options import EXIT_INPUT, build_parser
from penn_jax.progress import tell
from penn_jax.types import DivergedError, InputError, LostError, StoppedError

EXIT_DIVERGED = 3
EXIT_STOPPED = 75
"""SIGTERM came and the run is saved: ``--resume`` goes on (``EX_TEMPFAIL`` of sysexits.h)."""
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options, rest = build_parser().parse_known_args(arguments)
    if rest and not options.takes_config:
        build_parser().error(f"unknown option {rest[0]}")
    options.overrides = rest
    if options.trains and arguments is None:
        start_with_huge_pages()
    try:
        with _sigterm_unwinds(), _stdout_for_json(options.json):
            outcome = options.command(options)
        if outcome is not None:
            tell(outcome, options.json)
    except InputError as error:
        return _fail(str(error), EXIT_INPUT)
    except DivergedError as error:
        return _fail(str(error), EXIT_DIVERGED)
    except LostError as error:
        return _fail(str(error), EXIT_LOST)
    except StoppedError as error:
        interrupted = error.signal == signal.SIGINT
        return _fail(str(error), EXIT_INTERRUPTED if interrupted else EXIT_STOPPED)
    except OSError as error:
        where = error.filename or "a file"
        return _fail(
            f"{where}: {error.strerror or error}, expected to read or write it; "
            f"check the path, its permissions and the space left",
            EXIT_INPUT,
        )
    except KeyboardInterrupt as error:
        return _fail("interrupted", 128 + error.args[0] if error.args else EXIT_INTERRUPTED)
    return 0


def _stdout_for_json(wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """Keep stdout for the result alone: whatever else is printed meanwhile goes to stderr."""
    return contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext()


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that what is half done is tidied away."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(number)

    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> int:
    print(f"penn: error: {' '.join(message.split())}", file=sys.stderr)
    return end(code)


if __name__ == "__main__":
    sys.exit(main())
