"""``argparse`` for all commands: what is mistyped gets one sentence, with the nearest name there is."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

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
