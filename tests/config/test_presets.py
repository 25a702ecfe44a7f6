"""Rows of the papers name the weights they start from, and the details in which code bases differ."""

from functools import cache

import pytest
import timm
import yaml

from hardpix.config.catalog import conf_dir
from hardpix.config.compose import compose
from hardpix.config.rows import papers, rows
from hardpix.evaluate import loaded
from hardpix.models import TimmBackbone
from hardpix.train import rundir
from hardpix.train.build import build
from hardpix.train.train import train

ROWS = {one.full_name: one for paper in papers() for one in rows(paper).values() if one.trains}
# Where timm has no weights of an older recipe.
ONLY_ONE = {"resnet18d", "resnetv2_50", "resnetv2_101"}
NEW_RECIPES = ("a1", "a2", "a3", "a1h", "tv2", "ra2", "ra3", "ra4", "b1k", "b2k", "c1", "c2", "d_")


@cache
def content(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def settings(name, group):
    """The choice and the keys of ``group`` in a row and its protocol; not composed."""
    given = dict(text.split("=", 1) for text in ROWS[name].fixed)
    protocol = content(conf_dir() / f"experiment/{given['experiment']}.yaml")
    chosen = [item[f"override /{group}"] for item in protocol["defaults"] if f"override /{group}" in item]
    keys = {k.partition(".")[2]: yaml.safe_load(v) for k, v in given.items() if k.startswith(f"{group}.")}
    return given.get(group, chosen[0] if chosen else None), keys


def published(name):
    """Tags of the weights that timm publishes for a model."""
    base = name.partition(".")[0]
    return [n.partition(".")[2] for n in timm.list_pretrained(f"{base}.*")]


@pytest.mark.parametrize("path", sorted(conf_dir().glob("backbone/*.yaml")), ids=lambda p: p.stem)
def test_every_backbone_with_weights_names_a_tag_of_theirs(path):
    given = content(path)
    if "name" not in given or given["pretrained"] is False:
        return
    base, _, tag = given["name"].partition(".")
    assert tag in published(base), f"{path}: {published(base)}"
    if base not in ONLY_ONE and not base.startswith(("mobilenet", "vit", "xception")):
        assert not tag.startswith(NEW_RECIPES)


def file_of(group, choice):
    """The content of the file that is chosen, or that ``conf/train.yaml`` chooses, and of that it is built on."""
    own = content(conf_dir() / group / f"{choice or {'backbone': 'tiny', 'head': 'fcn'}[group]}.yaml")
    below = [name for name in own.get("defaults", []) if name != "_self_"]
    return (file_of(group, below[0]) if below else {}) | {k: v for k, v in own.items() if k != "defaults"}


def test_every_published_row_names_a_tag():
    assert len(ROWS) > 180
    for name in ROWS:
        choice, keys = settings(name, "backbone")
        file = file_of("backbone", choice)
        base = keys.get("name", file.get("name"))
        if base is not None:
            assert base.partition(".")[2] in published(base), name
        else:
            assert file["_target_"] in ("hardpix.models.SegNetEncoder", "hardpix.models.BiSeNetV2"), name


@pytest.mark.slow
def test_the_walk_above_is_what_is_composed():
    for name in ROWS:
        cfg = rundir.plain(compose(ROWS[name].fixed))
        for group in ("backbone", "head"):
            choice, keys = settings(name, group)
            expected = {k: v for k, v in (file_of(group, choice) | keys).items() if "$" not in str(v)}
            assert {k: cfg[group].get(k) for k in expected} == expected, name


def test_the_projection_of_the_aspp_is_that_of_the_papers_code():
    """R-41: 3x3 in mmsegmentation, on which HL was built, 1x1 in DeepLab's own; branches take their segmenter's."""
    kernels = {}
    for name in ROWS:
        choice, keys = settings(name, "head")
        kernel = (file_of("head", choice) | keys).get("project_kernel")
        branch = settings(name, "method")[0] in ("error_prediction", "detail", "bagging")
        if kernel is not None and not branch:
            kernels[name] = kernel
            assert kernel == (3 if name.startswith("hl/") else 1), name
    assert {name.partition("/")[0] for name in kernels} == {"hl", "lwm", "error_cascade", "hn"}


def test_ls_of_lwm_is_one_cascade_and_plain_refinenet_another_row():
    """R-38: the network of L_s + L_d without its depth."""
    for name in (
        "lwm/II_ls",
        "lwm/I_refinenet_r50",
        "lwm/I_sunrgbd_refinenet_r152",
        "lwm/I_sunrgbd_refinenet_r50",
    ):
        assert settings(name, "head")[0] == "refinenet_cascades"
        assert settings(name, "method")[0] == "baseline"
    assert settings("lwm/refinenet_r152", "head")[0] == "refinenet"
    assert ROWS["lwm/refinenet_r152"].cells == ()


def test_one_cascade_concatenates_four_scales(tiny):
    """Eq. (4.4) without depth: nothing else differs from the network with depth."""
    head = ("head=refinenet_cascades", "head.widths=[8,6,6,6]", "model.aux_level=null")
    (own, both) = (build(tiny(*head, f"method={m}"))[1].model for m in ("baseline", "lwm"))
    assert list(own.head.cascades) == ["label"]
    assert own.head.readers["label"].convs["label"].weight.shape[1] == 8 + 3 * 6
    names = {n for n, _ in both.named_parameters() if ".depth" not in n}
    assert {n for n, _ in own.named_parameters()} == names


def test_a_run_of_before_the_tags_and_kernels_still_loads(tiny, tmp_path):
    """Its configuration has no tag, no project_kernel and no depth_bias; it says what was then, not what is now."""
    fixed = ("method=lwm", "head=deeplabv3", "head.channels=8", "model.aux_level=null", "trainer.max_steps=1")
    train(tiny(*fixed, "run=old", "method.depth_bias=0"), [])
    path = tmp_path / "runs/default/old/config.yaml"
    text = path.read_text()
    for line in ("  project_kernel: 3\n", "  depth_bias: 0\n"):
        assert line in text
        text = text.replace(line, "")
    path.write_text(text)
    cfg = rundir.read_config(path.parent)
    assert (cfg.head.project_kernel, cfg.method.depth_bias) == (3, 0)
    _, data, method = loaded(path.parent, "last", [])
    assert method.model.head.aspp.fuse[0].kernel_size == (3, 3)
    assert method(data.evaluation_batch("test", 0)["image"]).shape[1] == data.info.num_classes


def test_a_name_without_a_tag_is_built_without_weights():
    plain, tagged = (TimmBackbone(n, pretrained=False, options={}) for n in ("resnet18", "resnet18.tv_in1k"))
    assert [p.shape for p in plain.parameters()] == [p.shape for p in tagged.parameters()]
    assert plain.specs == tagged.specs
