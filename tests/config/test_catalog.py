"""A file of the configuration that is not there gets the nearest one that is."""

import pytest

from hardpix.run.config import compose
from hardpix.types import ConfigError


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "experiment=hl/pspnet_r19",
            "experiment=hl/pspnet_r19: there is no such file; did you mean 'hl/pspnet_r1",
        ),
        ("experiment=lwn/II_ls", "did you mean 'lwm/II_ls"),
        ("head=pspp", "head=pspp: there is no such file; did you mean 'psp'"),
    ],
)
def test_the_nearest_file_is_named(given, told):
    with pytest.raises(ConfigError) as failure:
        compose([given])
    assert told in str(failure.value)
    assert "_cityscapes" not in str(failure.value)
