"""Settings as words of a command line: what a user is told to type must come back as it was meant."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

_NOT_TEXT = re.compile(r"null|true|false|nan|inf|[-+.\d_e]*", re.IGNORECASE)  # read as another type if bare


def command_words(settings: Mapping[str, str]) -> str:
    """``key=value`` words, quoted for Hydra's grammar and the shell where they need it."""
    return " ".join(shlex.quote(f"{key}={quoted(value)}") for key, value in settings.items())


def quoted(text: str) -> str:
    """A text as Hydra's grammar reads it back."""
    if re.fullmatch(r"[\w./-]+", text, re.ASCII) and not _NOT_TEXT.fullmatch(text):
        return text
    # Backslashes count only before a quote: those there are doubled.
    inside = re.sub(r'(\\*)("|\Z)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), text)
    return f'"{inside}"'


def override(key: Any, value: Any) -> str:
    """``key=value`` of a value as a YAML file has it."""
    return f"{key}={written(value)}"


def written(value: Any) -> str:
    """A value of a YAML file in Hydra's grammar."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(inner)}" for key, inner in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
