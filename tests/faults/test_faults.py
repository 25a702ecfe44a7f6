"""A few of the points at which ``make faults`` interrupts runs; all of them take most of an hour."""

import pytest

from tests.faults.cases import CASES, Case


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    made = {}

    def of(name):
        if name not in made:
            made[name] = Case(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of


def share(name):
    """Points by their place among all of a kind, from 0 to 1."""
    return [(name, kind, place) for kind in ("step", "write", "term", "full") for place in (0.35, 0.8)]


QUICK = share("hardness")
SLOW = [point for name in CASES for point in share(name) if point not in QUICK]


def check(case, name, kind, place):
    number = 1 + round(place * (case(name).counts[kind] - 1))
    assert case(name).violation(kind, number) is None


@pytest.mark.parametrize(("name", "kind", "place"), QUICK[::2])
def test_the_same_command_continues_exactly(case, name, kind, place):
    check(case, name, kind, place)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "place"), SLOW)
def test_every_method_continues_exactly(case, name, kind, place):
    check(case, name, kind, place)
