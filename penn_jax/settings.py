"""Sections of settings from plain values, with mistakes told in the project's one line."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from penn_jax.config import Section, from_json
from penn_jax.types import InputError


def parse_section(kind: type[Section], values: Any, source: object) -> Section:
    """A section of the config from plain JSON values; an error names the first key at fault.

    Raises:
        InputError: an unknown key, a wrong type or a value out of range.
    """
    try:
        return from_json(kind, values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "config"
        raise InputError(
            source,
            f"{where} = {first.get('input')!r}",
            first["msg"][0].lower() + first["msg"][1:],
            "see penn_jax/config.py for every key and its range",
        ) from error
