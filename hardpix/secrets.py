"""Keys and passwords of this process, kept out of what it writes. Standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_LOGIN = re.compile(r"([A-Za-z][\w+.-]*://[^/\s:@]*:)([^/\s@]+)@")
SHORTEST = 8  # characters: a shorter value is a switch or a number, which other texts hold by chance


def known() -> dict[str, str]:
    """The environment variables that hold a secret by their name, and what they hold."""
    return {k: v for k, v in os.environ.items() if _NAMES.search(k) and len(v) >= SHORTEST}


def masked(text: str) -> str:
    """``text`` with the value of every secret, and every password of an URL, as ``***``."""
    for value in sorted(known().values(), key=len, reverse=True):
        text = text.replace(value, "***")
    return _LOGIN.sub(r"\1***@", text)


def problems(flat: Mapping[str, Any]) -> list[str]:
    """What in a flat configuration must not be written, by its key; the value itself is never told."""
    secrets, found = known(), []
    for key, value in flat.items():
        text = f"{key} {value}"
        if name := next((n for n, secret in secrets.items() if secret in text), None):
            found.append(
                f"{masked(key)}: holds the value of the environment variable {name}; a run writes its configuration "
                "to files, so no secret may stand in it"
            )
        elif _LOGIN.search(text):
            found.append(
                f"{masked(key)}: holds a password (scheme://user:password@host); a run writes its configuration to "
                "files, so no secret may stand in it"
            )
    return found
