"""``penn completion``: a script by which a shell completes commands, options and file names."""

from __future__ import annotations

import argparse

from penn_jax.types import InputError

SHELLS = ("bash", "zsh", "tcsh")


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion of a parser.

    Args:
        parser: of the command; arguments that are paths complete to files.
        shell: one of ``SHELLS``.

    Raises:
        InputError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise InputError(
            "penn completion", "needs shtab", "it", "pip install 'penn-jax[completion]'"
        ) from error

    def mark(part: argparse.ArgumentParser) -> None:
        for action in part._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    mark(command)
            elif action.type not in (None, int, float):  # then it makes a path of the word
                action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]

    mark(parser)
    return shtab.complete(parser, shell)
