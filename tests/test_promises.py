"""What hardpix/PROMISES.md promises names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "hardpix/PROMISES.md").read_text(encoding="utf-8")


def test_every_named_test_exists():
    named = re.findall(r"`([\w/]+\.py)?(?:::(\w+))?`", PAGE)
    assert len(named) > 30
    file = None
    missing = []
    for path, name in named:
        file = TESTS / path if path else file
        if not (path or name):
            continue
        if not file.is_file() or (name and f"def {name}(" not in file.read_text(encoding="utf-8")):
            missing.append(f"{path}::{name}")
    assert missing == []


def test_every_fault_is_there_once():
    found = [
        int(n) for row in re.findall(r"^\| (R\d+(?:, R\d+)*) \|", PAGE, re.M) for n in re.findall(r"\d+", row)
    ]
    assert sorted(found) == list(range(1, 33))
