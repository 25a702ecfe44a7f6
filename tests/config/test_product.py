"""Protocols are flat, and set no key that another choice of the same group lacks: any head goes with any of them."""

import pytest
import yaml

from hardpix.cli import completion
from hardpix.config import catalog
from hardpix.config.compose import compose, validate

EXPERIMENTS = catalog.entries("experiment")
# Groups whose choices are interchangeable; each is varied alone.
SWAPPED = ("head", "backbone", "loss", "method", "data", "inference", "optimizer", "scheduler", "model")
# Values that a user must give.
NEEDED = {
    "folder": ["data.source.root=x", "data.source.classes=[a,b]"],
    "huggingface": ["data.source.root=x", "data.source.classes=[a,b]"],
    "listed": ["data.source.listing=x.csv", "data.source.classes=classes.txt"],
    "packed": ["data.source.root=x"],
    "rgbd": ["data.source.root=x", "data.source.layout=tum"],
    "coco": ["data.source.root=x"],
}


def content(entry):
    return yaml.safe_load(entry.path.read_text(encoding="utf-8"))


def keys(node, path=()):
    """Every dotted path of a mapping."""
    for name, value in node.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from keys(value, (*path, name))


def has(outline, path):
    for name in path:
        if not isinstance(outline, dict) or name not in outline:
            return False
        outline = outline[name]
    return True


@pytest.mark.parametrize("entry", EXPERIMENTS, ids=lambda entry: entry.name)
def test_a_protocol_only_chooses_files_and_sets_keys(entry):
    for item in content(entry)["defaults"]:
        assert isinstance(item, dict), f"{item}: a protocol inherits none"
        assert all(key.startswith("override /") for key in item)
    assert "reproduces" not in content(entry)
    assert len(EXPERIMENTS) == 18


# `model=cross_stitch` and `model=bisenetv2` set keys of other groups as well.
@pytest.mark.parametrize("entry", [*EXPERIMENTS, *catalog.entries("model")], ids=lambda entry: entry.name)
def test_no_key_is_set_that_another_choice_of_the_group_lacks(entry):
    if not entry.path.read_text(encoding="utf-8").startswith("# @package _global_"):
        return
    for group, own in content(entry).items():
        if group not in SWAPPED or group == entry.group or not isinstance(own, dict):
            continue
        for choice in catalog.entries(group):
            outline = completion.keys(group, [f"{group}={choice.name}"])
            for path in keys(own):
                free = path[0] == "group_options"  # a mapping of names that are the model's
                assert free or has(outline, path), f"{group}={choice.name} has no key {'.'.join(path)}"


@pytest.mark.parametrize("head", [entry.name for entry in catalog.entries("head")])
def test_the_demo_goes_with_every_head(head):
    validate(compose(["experiment=demo", f"head={head}"]))


@pytest.mark.slow  # a tenth of a second each
@pytest.mark.parametrize("group", SWAPPED)
@pytest.mark.parametrize("experiment", [entry.name for entry in EXPERIMENTS])
def test_every_protocol_goes_with_every_choice(experiment, group):
    for choice in catalog.entries(group):
        validate(
            compose([f"experiment={experiment}", f"{group}={choice.name}", *NEEDED.get(choice.name, [])])
        )
