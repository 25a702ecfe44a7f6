"""``hardpix page`` with weights: the explorer's frames, and what it says of runs that it cannot show."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix.cli import main
from hardpix.cli.completion import candidates
from hardpix.config.compose import compose
from hardpix.evaluate import loaded
from hardpix.scores import read_per_image
from hardpix.train import rundir
from hardpix.train.checkpoint import save
from hardpix.train.results import known_maps
from hardpix.train.train import train

LINE = (
    "data.source.height=32", "data.source.width=48", "data.source.train_frames=8", "data.source.val_frames=3",
    "data.source.test_frames=3", "data.train_transform.crop=[32,48]", "data.batch_size=4", "data.num_workers=0",
    "data.eval_batch_size=1", "backbone.name=test_resnet", "head.channels=8", "model.aux_channels=8",
    "trainer.accelerator=cpu", "trainer.devices=1", "trainer.max_steps=2", "trainer.sanity_steps=0",
    "callbacks.progress=none", "logger=csv", "panels=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A baseline and HL of two steps on the same three test frames."""
    folder = tmp_path_factory.mktemp("page")
    for name, method in (("base", "baseline"), ("hl", "hardness")):
        train(compose([*LINE, f"runs_dir={folder}", f"method={method}", f"run={name}"]), [])
    return folder / "default"


def made(study, out, *arguments):
    assert main(["page", str(study), "-o", str(out), "--device", "cpu", *arguments]) == 0
    text = out.read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)
    return text, json.loads(found[0]) if found else None


def picture(uri):
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.mark.slow
def test_frames_are_what_the_runs_predict(study, tmp_path):
    _, data = made(study, tmp_path / "a.html")
    assert [run["label"] for run in data["runs"]] == ["Baseline, seed 0", "HardnessLevel, seed 0"]
    scores = [{row.image: row.miou for row in read_per_image(study / name)} for name in ("base", "hl")]
    means = {name: sum(own[name] for own in scores) / 2 for name in scores[0]}
    assert [frame["name"] for frame in data["frames"]] == sorted(means, key=means.__getitem__)
    for i, name in enumerate(("base", "hl")):
        _, source, method = loaded(study / name, "last", [])
        assert [m["name"] for m in data["runs"][i]["maps"]] == list(known_maps(method, source))
        frames = source.evaluation_dataset("test").frames
        for frame in data["frames"]:
            place = next(p for p in range(len(frames)) if frames.name(p) == frame["name"])
            batch = source.evaluation_batch("test", place)
            with torch.inference_mode():
                logits = method(batch["image"])
            label, expected = batch["label"][0].numpy(), logits.argmax(1)[0].numpy()
            assert (picture(frame["label"]) == label).all()
            assert (picture(frame["runs"][i]["prediction"]) == expected).all()
            assert frame["runs"][i]["miou"] == pytest.approx(scores[i][frame["name"]], abs=1e-4)
            assert frame["runs"][i]["wrong"] == pytest.approx(
                (label != expected)[label != 255].mean(), abs=1e-4
            )
            maps = dict(
                zip((m["name"] for m in data["runs"][i]["maps"]), frame["runs"][i]["maps"], strict=True)
            )
            about = next(m for m in data["runs"][i]["maps"] if m["name"] == "loss")
            loss = torch.nn.functional.cross_entropy(
                logits, batch["label"], ignore_index=255, reduction="none"
            )[0]
            level = 1 + 254 * (loss.numpy() - about["low"]) / (about["high"] - about["low"])
            assert np.abs(picture(maps["loss"]) - level.clip(1, 255))[label != 255].max() <= 0.51
            assert (picture(maps["loss"])[label == 255] == 0).all()


@pytest.mark.slow
def test_fewer_frames_and_another_split(study, tmp_path):
    _, everything = made(study, tmp_path / "all.html")
    _, data = made(study, tmp_path / "a.html", "--frames", "1")
    assert [frame["name"] for frame in data["frames"]] == [everything["frames"][0]["name"]]
    assert data["order"] == "The 1 of 3 test frames with the lowest mean mIoU over all runs."
    text, data = made(study, tmp_path / "b.html", "--split", "val", "--frames", "2")
    assert data["order"] == "2 of 3 val frames, evenly spaced."
    assert "validation mIoU (%)" in text


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(study, tmp_path):
    assert made(study, tmp_path / "a.html") == made(study, tmp_path / "a.html")


def test_a_run_without_weights_is_told(study, tmp_path, capsys):
    copy = tmp_path / "runs"
    shutil.copytree(study, copy)
    shutil.rmtree(copy / "base" / "checkpoints")
    text, data = made(copy, tmp_path / "a.html")
    assert [run["label"] for run in data["runs"]] == ["HardnessLevel, seed 0"]
    told = r"Baseline \(\S*base\) is not in the explorer: \S*last.ckpt"
    assert re.search(told, text)
    assert re.search(told, capsys.readouterr().err)
    shutil.rmtree(copy / "hl" / "checkpoints")
    text, data = made(copy, tmp_path / "b.html")
    assert data is None
    assert "HardnessLevel" in text


def test_data_that_are_not_there_are_told(study, tmp_path):
    text, data = made(study, tmp_path / "a.html", "data=camvid", f"data.source.root={tmp_path / 'nowhere'}")
    assert data is None
    assert re.search(r"is not in the explorer: .*", text)


def test_a_run_on_other_frames_is_left_out_of_the_explorer(study, tmp_path):
    copy = tmp_path / "runs"
    shutil.copytree(study, copy)
    config = copy / "hl" / rundir.CONFIG
    config.write_text(config.read_text().replace("    height: 32", "    height: 40"))
    text, data = made(copy, tmp_path / "a.html")
    assert [run["label"] for run in data["runs"]] == ["Baseline, seed 0"]
    assert "do not see the same frames (data.source.height: 32 / 40)" in text


def test_a_run_that_diverged_is_left_out_of_the_explorer(study, tmp_path):
    copy = tmp_path / "runs"
    shutil.copytree(study, copy)
    path = copy / "base" / rundir.LAST
    content = torch.load(path, weights_only=True)
    for value in content["state_dict"].values():
        if value.is_floating_point():
            value.fill_(float("nan"))
    save(content, path)
    text, data = made(copy, tmp_path / "a.html")
    assert [run["label"] for run in data["runs"]] == ["HardnessLevel, seed 0"]
    assert "its training diverged" in text


def test_options_are_offered():
    assert candidates(["page", "RUN"], "--fr") == ["--frames"]
    assert candidates(["page", "RUN", "--split"], "") == ["test", "train", "val"]
    assert "page" in candidates([], "pa")
    assert candidates([], "re") == []  # the former name works and is not offered
