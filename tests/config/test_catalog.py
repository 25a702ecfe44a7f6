"""A file of the configuration that is not there gets the nearest one that is."""

import shlex

import pytest

from hardpix.config.command_line import command_words
from hardpix.config.compose import compose
from hardpix.types import ConfigError


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "experiment=hl/cityscape",
            "experiment=hl/cityscape: there is no such file; did you mean 'hl/cityscapes",
        ),
        ("experiment=lwn/nyuv2", "did you mean 'lwm/nyuv2"),
        ("head=pspp", "head=pspp: there is no such file; did you mean 'psp'"),
    ],
)
def test_the_nearest_file_is_named(given, told):
    with pytest.raises(ConfigError) as failure:
        compose([given])
    assert told in str(failure.value)


# Printed settings are typed again: the shell and Hydra must read what was meant.


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
