"""HN's rows and chains: they fit together, one runs end to end, tables know what fine-tuning started from."""

import csv
import io
import json

import pytest
import torch

from hardpix import record
from hardpix.cli import main, published_rows
from hardpix.cli.published_rows import experiments
from hardpix.config import compose as config
from hardpix.config import published
from hardpix.config.catalog import conf_dir
from hardpix.config.compose import validate
from hardpix.config.published import layout
from hardpix.config.rows import rows
from hardpix.record import SCHEMA, RunRecord, write
from hardpix.sweep.stages import _check_data, check_chain, read_chain
from hardpix.tables.compare import Run
from hardpix.tables.protocol_check import Use, departure
from hardpix.train import rundir
from hardpix.train.parent import factors, inherit
from hardpix.types import ConfigError

ROWS = rows("hn")
TABLES = conf_dir() / "table"


COMPOSED = {}


def compose(overrides, config_dir=None):
    """Many stages of these tests are the same, and composing one takes a fifth of a second."""
    key = tuple(overrides)
    if key not in COMPOSED:
        COMPOSED[key] = config.compose(overrides, config_dir=config_dir)
    return COMPOSED[key].copy()


@pytest.fixture(scope="module", autouse=True)
def _composed_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published_rows, "compose", compose)
        yield


@pytest.fixture(scope="module")
def known():
    """The rows of all cells of HN, composed in one pass."""
    return experiments([cell for one in published.tables("hn") for cell in layout(one, TABLES).cells()])


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_configuration_at_the_protocol(name):
    cfg = compose(ROWS[name].fixed)
    validate(cfg)
    assert (cfg.optimizer.lr, cfg.optimizer.momentum, cfg.optimizer.weight_decay) == (1e-3, 0.9, 5e-4)
    assert (cfg.scheduler["_target_"], cfg.loss["_target_"], cfg.loss.normalizer) == (
        "hardpix.optim.Constant", "hardpix.losses.CrossEntropy", "valid",
    )  # fmt: skip
    transform = cfg.data.train_transform
    assert (list(transform.ratio), transform.photometric, transform.cat_max_ratio) == ([1, 1], None, None)
    assert cfg.backbone.pretrained is ("imagenet" in name)
    assert not cfg.backbone.freeze_bn
    assert cfg.model.aux_level is None
    source, pretraining = cfg.data.source["_target_"].rpartition(".")[2], name.startswith("pretrain")
    if name.startswith("camvid"):
        assert (source, list(transform.crop), cfg.data.batch_size, cfg.trainer.max_epochs) == (
            "CamVid", [360, 480], 1, 100,
        )  # fmt: skip
    elif name == "pretrain_cifar100":
        assert (source, list(transform.crop)) == ("CIFAR100", [32, 32])
    else:
        assert list(transform.crop) == [424, 560]
        assert source == ("HN" if pretraining else "NYUv2")
        assert cfg.data.batch_size * cfg.trainer.max_steps == (800000 if pretraining else 40000)
        assert pretraining or list(cfg.data.source.border_crop) == [45, 469, 40, 600]
    if "fixed" in name:
        assert list(cfg.freeze) == [f"conv{i + 1}" for i in range(int(name[-1]))]
    else:
        assert list(cfg.freeze) == []
    stitched = "cross_stitch" in name
    assert cfg.model["_target_"].endswith("CrossStitch" if stitched else "Segmenter")
    assert ("stitch" in cfg.optimizer.group_options) == stitched


def test_labels_of_each_kind_lie_in_folders_of_their_own():
    root = compose(ROWS["pretrain"].fixed).data.source.root.rpartition("/")[0]
    roots = {name: compose(one.fixed).data.source.root for name, one in ROWS.items() if "pretrain" in name}
    assert {name: path.removeprefix(f"{root}/") for name, path in roots.items()} == {
        "pretrain": "hn", "pretrain_deeplab": "hn", "pretrain_height5": "hn_height5",
        "pretrain_height": "hn_height", "pretrain_cifar100": "cifar100",
    }  # fmt: skip


def test_fine_tuning_stands_on_the_pre_training_of_its_chain(known):
    found = {one.name.removeprefix("hn/"): one.factors for one in known}
    start = "parent_config."
    for name, source in {
        "segnet_hn": "HN", "segnet_cifar100": "CIFAR100", "segnet_hn_fixed3": "HN", "segnet_hn_cross_stitch": "HN",
        "deeplab_hn": "HN", "camvid_hn": "HN", "camvid_cifar100": "CIFAR100",
    }.items():  # fmt: skip
        assert found[name]["init_from"] == "RUN"
        assert found[name][f"{start}data.source._target_"] == f"hardpix.data.{source}"
        assert found[name][f"{start}model._target_"] == "hardpix.models.Segmenter"
        assert found[name][f"{start}freeze"] == []
        for key in ("backbone.name", "backbone.widths", "head._target_"):  # the same network
            assert found[name].get(key) == found[name].get(start + key)
    # Weights are taken, not the network: the streams are of the run itself.
    assert found["segnet_hn_cross_stitch"]["model._target_"] == "hardpix.models.CrossStitch"
    assert "resnetv2_101" in found["deeplab_hn"][f"{start}backbone.name"]
    for name in ("segnet_none", "segnet_imagenet_cross_stitch", "segnet_imagenet_fixed2", "camvid_none"):
        assert (found[name]["init_from"], found[name]["parent_config"]) == (None, None)
    roots = {
        name: found[name][f"{start}data.source.root"].rpartition("/")[2]
        for name in ("segnet_hn", "segnet_height", "segnet_height5")
    }
    assert roots == {"segnet_hn": "hn", "segnet_height": "hn_height", "segnet_height5": "hn_height5"}
    lengths = sorted(one.factors["trainer.max_epochs"] for one in known if one.name == "hn/camvid_hn")
    assert lengths == [5, 10, 50, 100]


def told_by(folder, overrides) -> RunRecord:
    """The record that a finished training of ``overrides`` would leave in ``folder``."""
    return RunRecord(
        schema=SCHEMA, run_id=folder.name, status="done", seed=0, parent=None, started="", code={}, host={},
        name=folder.name, dataset="nyuv2", frames={}, metrics={}, factors=factors(inherit(compose(overrides))),
    )  # fmt: skip


def pretrained(folder, *overrides):
    """A run directory to start from, without weights."""
    given = [*ROWS["pretrain"].run_overrides, *overrides]
    folder.mkdir()
    rundir.write_config(folder, compose(given))
    write(told_by(folder, given), folder)
    return folder


def test_runs_that_start_from_a_run_are_compared_with_its_settings(tmp_path, known):
    """A run as its record tells it departs from its experiment in what was set otherwise alone, here and below."""
    start = pretrained(tmp_path / "start", "data.source.root=/elsewhere", "seed=3")
    short = pretrained(tmp_path / "short", "trainer.max_steps=500", "data.batch_size=2")

    def told(cell, name, *overrides):
        run = Run("d", told_by(tmp_path, [*ROWS[name].run_overrides, *overrides]))
        return departure(Use(run, f"hn/{cell}", "nyuv2", "test", "test"), known).keys

    row = "2/height10_normals/miou"
    assert told(row, "segnet_hn", f"init_from={start}") == {}
    assert told(row, "segnet_hn", f"init_from={short}", "optimizer.lr=0.01") == {
        "optimizer.lr": (0.01, 0.001),
        "parent_config.trainer.max_steps": (500, 200000),
        "parent_config.data.batch_size": (2, 4),
    }
    assert told(row, "segnet_hn")["init_from"] == (None, "RUN")
    best = start / "checkpoints/best.ckpt"  # other weights of the run are another start
    assert list(told(row, "segnet_hn", f"init_from={best}")) == ["init_from"]
    fixed = ["segnet_hn_fixed2", f"init_from={start}"]
    assert told("5/conv1_2/hn_miou", *fixed) == {}
    assert told("5/conv1_3/hn_miou", *fixed) == {"freeze": (["conv1", "conv2"], ["conv1", "conv2", "conv3"])}
    stitched = ["segnet_hn_cross_stitch", f"init_from={start}"]
    assert told("6/hn_cross_stitch/miou", *stitched) == {}


def test_a_data_set_for_a_whole_chain_is_refused_where_stages_have_their_own():
    for given in ("data=camvid", "data.source.root=/d", "+data.source.x=1"):
        with pytest.raises(ConfigError, match=r"\(pretrain HN, finetune NYUv2\).* as finetune:"):
            check_chain(read_chain("hn/segnet"), [given], {}, compose)
    _check_data(
        read_chain("hn/segnet"), ["finetune:data=camvid", "data.batch_size=2", "dataset=1"], {}, compose
    )
    _check_data(
        read_chain("hn/segnet"), ["data=camvid"], {"pretrain": None}, compose
    )  # it is trained already
    _check_data(read_chain("error_prediction/pspnet"), ["data=camvid"], {}, compose)


ROOMS = (
    "data.source.height=48",
    "data.source.width=64",
    "data.source.train_frames=8",
    "data.source.val_frames=3",
)
SMALL = (
    "backbone=segnet", "backbone.pretrained=false", "backbone.widths=[4,4,4,4,4]", "backbone.convs=[1,1,1,1,1]",
    "head=segnet", "head.convs=[1,1,1,1,1]", "model.aux_level=null", "data.train_transform.crop=[48,64]",
    "data.batch_size=2", "data.eval_batch_size=1", "data.num_workers=0", "trainer.accelerator=cpu",
    "trainer.max_steps=2", "trainer.sanity_steps=0", "callbacks.progress=none", "logger=csv", "panels=0",
    "finetune:data.source.test_frames=3", *(f"finetune:{text}" for text in ROOMS),
)  # fmt: skip


@pytest.mark.slow
def test_a_chain_pre_trains_on_labels_and_fine_tunes(tmp_path, capsys):
    labels, runs = tmp_path / "labels", tmp_path / "runs"
    assert main(["data", "hn-labels", "data=synthetic", *ROOMS, "--out", str(labels), "--workers", "1"]) == 0
    line = ["hn", *SMALL, f"pretrain:data.source.root={labels}", f"runs_dir='{runs}'", "run=x"]
    line += ["finetune:reproduces=[hn/2/height10_normals/*]"]
    assert main(["sweep", *line]) == 0
    first, second = (record.read(runs / "default" / f"x-{stage}") for stage in ("pretrain", "finetune"))
    assert (first.dataset, second.dataset) == ("hn", "synthetic")
    assert (second.parent, second.factors["init_from"]) == (first.run_id, "RUN")
    assert second.factors["parent_config.data.source._target_"] == "hardpix.data.HN"
    weights = [
        torch.load(runs / f"default/x-{stage}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for stage in ("pretrain", "finetune")
    ]
    shapes = [{key: value.shape for key, value in state.items()} for state in weights]
    differing = {key for key in shapes[0] if shapes[0][key] != shapes[1][key]}
    assert differing
    assert all("classifiers" in key for key in differing)  # 20 classes there, those of the rooms here
    said = capsys.readouterr().out
    assert "hn: test is val" in said
    assert "as initialised: model.head" in said
    assert main(["sweep", *line]) == 0  # done: nothing is trained again
    assert record.read(runs / "default/x-finetune").run_id == second.run_id

    path = runs / "default/x-finetune/run.json"  # as if the rooms were NYUv2
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "nyuv2", "frames": {}}))
    capsys.readouterr()
    assert main(["table", "--published", "hn/2", str(runs), "--format", "csv"]) == 0
    lines = csv.DictReader(io.StringIO(capsys.readouterr().out))
    found = {f"{one['row']}/{one['column']}": one for one in lines}
    ours = found["height10_normals/miou"]
    assert float(ours["mean"]) == pytest.approx(100 * second.metrics["test/miou"])
    assert found["height/miou"]["state"] == "not run"
    assert "parent_config.trainer.max_steps=2 (experiment: 200000)" in ours["notes"]
    assert "parent_config.data.source" not in ours["notes"]
    assert "init_from" not in ours["notes"]
