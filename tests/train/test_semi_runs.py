"""Semi-supervised runs and runs scored on another data set: resuming, records, saved configurations."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from hardpix import record
from hardpix.cli import main
from hardpix.config import published
from hardpix.config.catalog import conf_dir
from hardpix.config.published import layout
from hardpix.data.synthetic.furniture import densities
from hardpix.data.synthetic.rooms import render
from hardpix.tables.compare import collect
from hardpix.tables.published_render import render as rendered
from hardpix.tables.reproduction import comparison
from hardpix.train import rundir
from hardpix.train.resume import LastCheckpoint
from hardpix.train.train import train
from hardpix.types import ConfigError

pytestmark = pytest.mark.slow  # trains runs

SEMI = (
    "data.labeled=0.25", "data.batch_size=2", "data.unlabeled_batch_size=1", "method.contrastive=true",
    "method.contrast.channels=4", "method.contrast.bank=8", "method.contrast.bank_first=9",
    "method.contrast.anchors=3", "method.contrast.negatives=2", "method.contrast.confidence=0", "panels=0",
    "trainer.val_every_epochs=100",
)  # fmt: skip


def weights(run):
    return torch.load(run / rundir.LAST, weights_only=True)["state_dict"]


def test_a_resumed_run_is_the_uninterrupted_one(tiny, tmp_path):
    """Six frames without labels, one in a step: 8 steps, interrupted within the second epoch."""
    given = ("method=u2pl_hl", "trainer.max_steps=8", "scheduler=constant", *SEMI)
    whole = train(tiny(*given, "run=whole"))
    assert whole.frames["synthetic/train"] == 2
    assert whole.frames["synthetic/unlabeled"] == 6
    half = tiny(*given, "run=half", "callbacks.checkpoint_every_steps=7")

    class Stopped(Exception):
        pass

    run = tmp_path / "runs/default"
    original = LastCheckpoint.on_train_batch_end
    with pytest.MonkeyPatch.context() as patch:

        def once(self, trainer, *rest):
            original(self, trainer, *rest)
            if trainer.global_step == 7:
                raise Stopped

        patch.setattr(LastCheckpoint, "on_train_batch_end", once)
        with pytest.raises(Stopped):
            train(half)
    assert torch.load(run / "half" / rundir.LAST, weights_only=True)["global_step"] == 7
    half.resume = True
    done = train(half)
    one, other = weights(run / "whole"), weights(run / "half")
    assert one.keys() == other.keys()
    assert {"contrast.rows", "contrast.filled"} < one.keys()
    assert one["contrast.filled"].any()
    assert [k for k in one if not torch.equal(one[k], other[k])] == []
    assert done.metrics["test/miou"] == whole.metrics["test/miou"]
    with pytest.raises(ConfigError, match=r"8 -> 9, but method\.unreliable was made for the old length"):
        train(tiny(*given[:1], "trainer.max_steps=9", "scheduler=constant", *SEMI, "run=half", "resume=true"))


def test_the_teacher_starts_as_the_student_whatever_that_starts_from(tiny, tmp_path):
    base = train(tiny("run=base", "panels=0", "trainer.max_steps=2"))
    assert base.status == "done"
    run = tmp_path / "runs/default"
    still = ("trainer.max_steps=1", "optimizer.lr=1e-30", "scheduler=constant", "panels=0")
    train(tiny("method=u2pl", *SEMI[:3], "run=u", *still, f"init_from='{run / 'base'}'"))
    start, end = weights(run / "base"), weights(run / "u")
    for name in (n.removeprefix("model.") for n in start if n.startswith("model.")):
        moved = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert moved or torch.equal(end[f"teacher.{name}"], start[f"model.{name}"]), name
        if name.endswith("num_batches_tracked"):  # went on from the student's
            assert int(end[f"teacher.{name}"]) == int(start[f"model.{name}"]) + 1


def test_a_supervised_run_on_the_subset(tiny, tmp_path):
    (tmp_path / "list.txt").write_text("train_00005\nx/train_00002.png y.png\n")
    done = train(
        tiny(
            "run=sup",
            f"data.labeled='{tmp_path / 'list.txt'}'",
            "data.batch_size=2",
            "panels=0",
            "trainer.max_steps=1",
        )
    )
    assert done.frames == {"synthetic/train": 2, "synthetic/val": 3, "synthetic/test": 3}


# Another data set


@pytest.fixture
def trained(tiny, tmp_path):
    train(tiny("run=a", "panels=0", "trainer.max_steps=1"))
    return tmp_path / "runs/default/a"


def test_a_run_is_scored_on_the_other_style(trained, tmp_path):
    out = tmp_path / "b"
    assert main(["evaluate", str(trained), "data.source.style=b", "--out", str(out)]) == 0
    own, found = record.read(trained), record.read(out)
    assert (own.dataset, found.dataset) == ("synthetic", "synthetic_b")
    assert found.factors["data.source.style"] == "b"
    assert found.factors["trained.dataset"] == "synthetic"
    assert found.factors["trained.data.source.style"] == "a"
    assert found.factors["trained.data.batch_size"] == 4
    assert not {"trained.data.seed", "trained.data.num_workers"} & found.factors.keys()
    assert found.frames == own.frames | {"synthetic_b/test": 3}
    again = tmp_path / "again"
    assert main(["evaluate", str(trained), "data.num_workers=0", "--out", str(again)]) == 0
    assert not [key for key in record.read(again).factors if key.startswith("trained.")]


def test_other_classes_are_named(trained, capsys):
    assert main(["evaluate", str(trained), "data=cityscapes"]) == 2
    said = capsys.readouterr().err
    assert (
        "was trained on 18 classes, cityscapes has 19, and they differ (the run lacks road, sidewalk, building; "
        in said
    )
    assert "cityscapes lacks floor, ceiling, door)" in said
    assert said.count("\n") == 1


def test_table_11_is_filled_by_scores_on_cityscapes(trained, tmp_path):
    """The run itself, which is about GTAV, is left out, and that is told."""
    own = record.read(trained)
    run = replace(own, dataset="gtav", factors=own.factors | {"reproduces": ["hl/11/deeplabv3plus/miou"]})
    scored = replace(
        run, run_id="s", dataset="cityscapes", metrics={"test/miou": 0.25},
        factors=run.factors | {"data.test_split": "val", "trained.dataset": "gtav", "trained.data.batch_size": 4},
    )  # fmt: skip
    for name, one in (("run", run), ("scored", scored)):
        (tmp_path / "t" / name).mkdir(parents=True)
        record.write(one, tmp_path / "t" / name)
    (table,) = published.tables("hl/11")
    shown = comparison(layout(table, conf_dir() / "table"), collect([tmp_path / "t"]), [], ())
    assert ",25.0" in rendered([shown], "csv")
    assert "about cityscapes, but its data set is gtav" in rendered([shown], "md")


# Configurations from before


def test_a_run_from_before_these_settings_goes_on(tiny, tmp_path, trained):
    path = trained / rundir.CONFIG
    content = yaml.safe_load(path.read_text())
    for key in ("labeled", "labeled_seed", "unlabeled_batch_size"):
        del content["data"][key]
    del content["data"]["source"]["style"]
    path.write_text(yaml.safe_dump(content))
    assert train(tiny("run=a", "panels=0", "trainer.max_steps=1", "resume=true")).status == "done"
    assert main(["evaluate", str(trained), "data.source.style=b", "--out", str(tmp_path / "b")]) == 0
    assert json.loads((tmp_path / "b/run.json").read_text())["dataset"] == "synthetic_b"


# The styles themselves


def test_styles_share_geometry_and_labels_and_differ_in_colour():
    for index in range(2):
        a, b = (render(0, "train", index, height=24, width=32, difficulty=0.5, style=s) for s in "ab")
        default = render(0, "train", index, height=24, width=32, difficulty=0.5)
        assert np.array_equal(a.rgb, default.rgb)
        for key in ("label", "depth", "normal", "pose", "valid"):
            assert np.array_equal(getattr(a, key), getattr(b, key)), key
        assert b.rgb.mean() < a.rgb.mean() - 10
        warmth = [f.rgb[..., 0].mean() / f.rgb[..., 2].mean() for f in (a, b)]
        assert np.abs(np.subtract(*warmth)) > 0.01
    assert (densities(0.5, "b").means < 0).all()
    np.testing.assert_array_equal(densities(0.5).means, densities(0.5, "a").means)


def test_the_default_world_is_what_it_was():
    """Means of a frame as it was rendered before there were styles."""
    frame = render(0, "train", 0, height=48, width=64, difficulty=0.5)
    np.testing.assert_allclose(
        frame.rgb.reshape(-1, 3).mean(0), [133.64583333, 131.52669271, 117.37272135], atol=0.02
    )
    frame = render(3, "val", 7, height=48, width=64, difficulty=1.0, kinect=True)
    np.testing.assert_allclose(
        frame.rgb.reshape(-1, 3).mean(0), [130.96744792, 132.52604167, 124.42643229], atol=0.02
    )


def test_a_style_that_does_not_exist(tiny):
    with pytest.raises(ConfigError, match=r"synthetic rooms: style is c; it must be a or b"):
        train(tiny("data.source.style=c"))
