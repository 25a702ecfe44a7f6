"""Printed settings are typed again: the shell and Hydra must read what was meant."""

import shlex

import pytest

from hardpix.run.config import compose
from hardpix.run.overrides import command_words


@pytest.mark.parametrize(
    "path",
    ["out", "/data/camvid-2/x_1.5", "oüt/größe", "a b", "a,b", "a=b", "it's", 'say "x"', "C:\\x\\", 'a\\"b', "a{b}",
     "[a]", "(1)", "~", "x#y", "null", "True", "1e-3", "1_000", "inf", "$HOME", "*"],
)  # fmt: skip
def test_a_path_comes_back(path):
    words = shlex.split(command_words({"data": "camvid", "data.source.root": path}))
    assert compose(words).data.source.root == path


def test_plain_paths_stay_plain():
    assert (
        command_words({"data": "camvid", "data.source.root": "a/b-1.5"})
        == "data=camvid data.source.root=a/b-1.5"
    )
