"""A fact is stated once: numbers of a configuration in ``conf/``, sizes of data sets next to their readers."""

import dataclasses
import inspect
import re

import pytest
import yaml
from hydra.utils import get_object

from hardpix import data
from hardpix.config.catalog import conf_dir, split_sizes
from hardpix.config.compose import GROUPS, Root, compose

# Numbers that a constructor has as its default and conf/ states too: the keys of a user's own data (a script reads
# its folder without a configuration), and what a seed or a number of classes is where nothing is said.
BOTH = {
    ("Coco", "ignore_index"),
    ("Folder", "ignore_index"),
    ("HuggingFace", "ignore_index"),
    ("Listed", "ignore_index"),
    ("Folder", "depth_missing_values"),
    ("Listed", "depth_missing_values"),
    ("RGBDFolder", "depth_missing_values"),
    ("RGBDFolder", "depth_max"),
    ("CamVid", "classes"),
    ("NYUv2", "classes"),
    ("NYUv2", "val_seed"),
    ("DataModule", "labeled_seed"),
    ("SyntheticRooms", "focal"),  # of the renderer, which other callers use
}


def nodes(value):
    if isinstance(value, dict):
        if "_target_" in value:
            yield value
        for inner in value.values():
            yield from nodes(inner)


def is_number(value):
    if isinstance(value, list | tuple):
        return bool(value) and all(map(is_number, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def same(default, value):
    return (list(default) if isinstance(default, tuple) else default) == value


def test_no_number_is_both_a_default_and_in_conf():
    found = set()
    for group in (*GROUPS, "pipeline"):
        for path in sorted((conf_dir() / group).rglob("*.yaml")):
            for node in nodes(yaml.safe_load(path.read_text())):
                target = get_object(node["_target_"])
                for name, parameter in inspect.signature(target).parameters.items():
                    if name in node and is_number(parameter.default) and same(parameter.default, node[name]):
                        found.add((target.__name__, name))
    assert found == BOTH


def test_the_root_has_types_alone():
    fields = dataclasses.fields(Root)
    assert all(f.default is f.default_factory is dataclasses.MISSING for f in fields)
    assert {f.name for f in fields} == set(map(str, compose())) - set(GROUPS)


SOURCES = {  # the reader of each name
    source.info.name: source
    for source in vars(data).values()
    if hasattr(getattr(source, "info", None), "name")
} | {
    "camvid": data.CamVid,
    "nyuv2": data.NYUv2,
}  # their classes are a choice, and so no attribute of the class


@pytest.mark.parametrize("name", split_sizes())
def test_sizes_are_those_of_the_readers_documentation(name):
    stated = inspect.getdoc(SOURCES[name]).split("\n\n")[0]
    sizes = split_sizes()[name]
    assert sizes.keys() <= set(SOURCES[name].splits)
    assert [int(n) for n in re.findall(r"\d+", stated) if int(n) in sizes.values()] == list(sizes.values())
