"""A share of ``make fuzz``; and that it would find what it looks for."""

import pytest

from hardpix.types import DataError
from tests.fuzz import run
from tests.fuzz.parsers import PARSERS, Parser
from tests.fuzz.run import fuzz, violation


@pytest.mark.parametrize("name", PARSERS)
def test_a_reader_returns_or_tells_one_sentence(name):
    tried, found = fuzz(name, round(20 * PARSERS[name].share), 7)
    assert tried
    assert found is None


def raises(error):
    def read(path):
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (raises(KeyError("a")), "KeyError"),
        (raises(DataError("no name")), "does not name the file"),
        (raises(RecursionError("deep")), "RecursionError"),
        (lambda path: sum(range(60_000_000)), " s"),
        (lambda path: b"x" * 300_000_000, " MB"),
        (lambda path: None, None),
    ],
)
def test_what_a_violation_is(tmp_path, monkeypatch, read, said):
    monkeypatch.setitem(PARSERS, "x", Parser(read, None))
    monkeypatch.setattr(run, "SECONDS", 0.3 if said == " s" else 10)
    found = violation("x", b"", tmp_path)
    assert (found is None) if said is None else (said in found)
