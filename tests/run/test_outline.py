"""Keys of configuration files, read by lines, are those that Hydra composes."""

import pytest
import yaml
from omegaconf import DictConfig

from hardpix.run import catalog, outline
from hardpix.run.config import compose


def nested(node):
    return {str(k): nested(v) for k, v in node.items()} if isinstance(node, dict | DictConfig) else None


def test_every_file_has_the_keys_that_a_parser_finds():
    """All of conf/ but tables, chains and studies, of which no key can be set."""
    for group in catalog.groups():
        if group in ("table", "chain", "sweep"):
            continue
        for path in (catalog.conf_dir() / group).rglob("*.yaml"):
            text = path.read_text(encoding="utf-8")
            wanted = {k: v for k, v in (yaml.safe_load(text) or {}).items() if k not in ("defaults", "hydra")}
            assert set(outline.outline(text)) == set(wanted), path
            for key, value in outline.outline(text).items():
                if isinstance(value, dict) and value:
                    assert set(value) == set(map(str, wanted[key])), (path, key)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["method=hardness", "data=cityscapes", "head=psp", "loss=ohem"],
        ["model=cross_stitch", "backbone=segnet", "head=segnet", "optimizer=adamw"],
        ["experiment=hl/pspnet_r18_hl"],
        ["experiment=lwm/II_ls_ld_rz_ms_cl"],
        ["experiment=hn/segnet_hn", "data.source.root=x"],
    ],
)
def test_groups_have_the_keys_of_the_composed_configuration(words):
    cfg = compose(words)
    for group in ("data", "backbone", "head", "method", "loss", "optimizer", "trainer", "inference"):
        found = outline.keys(group, words)
        own = {name for name in cfg[group] if name in found}
        assert found, group
        assert set(found) <= {str(name) for name in cfg[group]}, group
        assert len(own) >= 0.7 * len(cfg[group]), (group, set(cfg[group]) - own)  # an experiment may add some
        if isinstance(found.get("source"), dict):
            assert set(found["source"]) <= set(map(str, cfg[group].source))


def test_choices_follow_the_line_then_the_experiment_then_the_root():
    assert outline.chosen([])["head"] == "fcn"
    assert outline.chosen(["experiment=hl/pspnet_r18_hl"])["method"] == "hl_released"
    assert outline.chosen(["experiment=hl/pspnet_r18_hl"])["head"] == "psp"
    assert outline.chosen(["experiment=hl/pspnet_r18_hl", "method=lwm"])["method"] == "lwm"
