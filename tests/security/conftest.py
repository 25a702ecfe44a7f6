"""A run of two steps that the tests of this folder copy and spoil."""

import pytest

from hardpix.train.train import train


@pytest.fixture(scope="session")
def run(composed_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(composed_tiny(folder, ["run=a", "trainer.max_steps=2", "panels=0", "scheduler=constant"]))
    return folder / "default/a"
