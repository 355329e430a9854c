"""Sections of settings from plain values, with mistakes told in the project's one line."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from penn_jax.config import Section, from_json
from penn_jax.types import InputError

_SHOWN = 60
"""Characters shown of a key or a value that does not fit."""


def parse_section(kind: type[Section], values: Any, source: object) -> Section:
    """A section of the config from plain JSON values; an error names the first key at fault.

    Raises:
        InputError: an unknown key, a wrong type or a value out of range.
    """
    expected, remedy = "known keys, each value in its range", "see penn_jax/config.py for them"
    try:
        return from_json(kind, values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "config"
        said = first["msg"][0].lower() + first["msg"][1:]
        wrong = f"{_short(where)} = {_short(repr(first['input']))}: {said}"
        raise InputError(source, wrong, expected, remedy) from error
    except RecursionError as error:
        raise InputError(source, "is nested too deeply", expected, remedy) from error


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
