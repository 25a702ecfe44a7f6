"""Arguments of commands, and settings as words of a command line."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)$")
UNKNOWN = re.compile(r"unrecognized arguments: (--[\w-]+)")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        hint = self._nearest(message)
        self.exit(
            2, f"{self.prog}: {message.removeprefix('argument ')}{hint}; {self.prog} --help says more\n"
        )

    def _nearest(self, message: str) -> str:
        import difflib  # only where something is wrong

        if found := CHOICE.search(message):
            known = re.findall(r"[\w.-]+", found[2])
        elif found := UNKNOWN.search(message):
            known = [option for option in self._option_string_actions if option.startswith("--")]
        else:
            return ""
        close = difflib.get_close_matches(found[1], known, n=1)
        return f"; did you mean {close[0]}?" if close else ""


# Settings as words of a command line, quoted so that they are read back unchanged.


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


def suggestion(word: str, known: Iterable[str]) -> str:
    """`` (did you mean a, b?)`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=3)
    return f" (did you mean {', '.join(close)}?)" if close else ""
