"""Keys and passwords of this process, kept out of what it writes. Standard library only.

Run as a program, this file passes on what it reads line by line, without them: see ``hardpix.train.machine``.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_LOGIN = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")  # without the scheme: a long line is gone through once
_NETRC = re.compile(r"""\b(?:password|account)\s+(?:"([^"\n]+)"|(\S+))""")
NETRC_SIZE = 1_000_000  # bytes of a .netrc that are looked at
SHORTEST = 8  # characters: a shorter value is a switch or a number, which other texts hold by chance
LONGEST_LINE = 1 << 20  # bytes of a line that are held back, should its end not come
LOGIN = 4096  # bytes of an address that may begin where such a line is cut


def known() -> dict[str, str]:
    """Where a secret stands, in words, and what it is: environment variables by their name, and ``.netrc``."""
    found = {f"the environment variable {k}": v for k, v in os.environ.items() if _NAMES.search(k)}
    found |= {f"password {number} of {path}": v for number, (path, v) in enumerate(_netrc(), 1)}
    return {where: value for where, value in found.items() if len(value) >= SHORTEST}


def masked(text: str) -> str:
    """``text`` with the value of every secret, and every password of an URL, as ``***``."""
    return _masked(text, _forms())


def problems(flat: Mapping[str, Any]) -> list[str]:
    """What in a flat configuration must not be written, by its key; the value itself is never shown."""
    secrets, found = known(), []
    for key, value in flat.items():
        text = f"{key} {value}"
        if where := next((n for n, secret in secrets.items() if secret in text), None):
            found.append(
                f"{masked(key)}: holds the value of {where}; a run writes its configuration to files, so no secret "
                "may stand in it"
            )
        elif _LOGIN.search(text):
            found.append(
                f"{masked(key)}: holds a password (scheme://user:password@host); a run writes its configuration to "
                "files, so no secret may stand in it"
            )
    return found


class Lines:
    """Bytes as they come in, and out by whole lines without secrets, however a line was cut into pieces."""

    def __init__(self) -> None:
        self._forms, self._held = _forms(), b""

    def put(self, piece: bytes) -> bytes:
        """What may be written by now; of a line without an end all but what a secret could still begin in."""
        held = self._held + piece
        end = max(held.rfind(b"\n"), held.rfind(b"\r")) + 1
        out, self._held = self._clean(held[:end]), held[end:]
        if len(self._held) > LONGEST_LINE:
            clean = self._clean(self._held)
            cut = max(0, len(clean) - max((len(form.encode()) for form in self._forms), default=0) - LOGIN)
            out, self._held = out + clean[:cut], clean[cut:]
        return out

    def rest(self) -> bytes:
        """The line that has not ended."""
        out, self._held = self._clean(self._held), b""
        return out

    def _clean(self, text: bytes) -> bytes:
        return _masked(text.decode("utf-8", "surrogateescape"), self._forms).encode(
            "utf-8", "surrogateescape"
        )


def _masked(text: str, forms: list[str]) -> str:
    for form in forms:
        text = text.replace(form, "***")
    return _LOGIN.sub(r"\1***@", text)


def _forms() -> list[str]:
    """Every secret as it may be printed, the longest first: as it is, in a Python or JSON text, in an address."""
    found: set[str] = set()
    for value in known().values():
        for part in (value, *value.splitlines()):  # the lines of a private key are printed one by one
            escaped = part.encode("unicode_escape").decode()
            found |= {part, part.strip(), escaped, json.dumps(part)[1:-1], quote(part), quote(part, safe="")}
    return sorted((form for form in found if len(form) >= SHORTEST), key=len, reverse=True)


def _netrc() -> Iterator[tuple[Path, str]]:
    """The file and each password in it; read as loosely as the libraries that send them."""
    try:
        path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(NETRC_SIZE)
    except (OSError, RuntimeError):  # no such file, no home
        return
    for match in _NETRC.finditer(text):
        yield path, match[1] or match[2]


def _pump(token: bytes, done: int) -> None:
    """Standard input to standard output, masked; ``done`` is closed when ``token`` has come by."""
    lines, sink, mark = Lines(), sys.stdout.fileno(), b"\0" + token + b"\n"
    held = b""

    def write(text: bytes) -> None:
        try:
            while text:
                text = text[os.write(sink, text) :]
        except OSError:  # a full disk: who prints must not wait, and hears of it when he saves
            pass

    while piece := os.read(0, 1 << 16):
        before, found, after = (held + piece).partition(mark)
        if found:
            write(lines.put(before) + lines.rest())
            os.close(done)
            mark, held = b"\0\0" + token, b""  # it comes once
            write(lines.put(after))
            continue
        # The mark may be cut in two.
        keep = next(
            (n for n in range(min(len(mark) - 1, len(before)), 0, -1) if before.endswith(mark[:n])), 0
        )
        held = before[len(before) - keep :] if keep else b""
        write(lines.put(before[: len(before) - keep]))
    write(lines.put(held) + lines.rest())


if __name__ == "__main__":
    _pump(sys.argv[1].encode(), int(sys.argv[2]))
