"""The commands as a person types them: evaluate, predict, table, data, demo, a sweep, several processes."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix import record
from hardpix.cli import main
from hardpix.train.train import train
from hardpix.types import HardpixError

TINY_LINE = (
    "data.source.height=32", "data.source.width=48", "data.source.train_frames=8", "data.source.val_frames=3",
    "data.source.test_frames=3", "data.train_transform.crop=[32,48]", "data.batch_size=4", "data.num_workers=0",
    "head.channels=8", "model.aux_channels=8", "trainer.accelerator=cpu", "trainer.max_steps=2",
    "trainer.sanity_steps=0", "callbacks.progress=none", "logger=csv", "panels=1",
)  # fmt: skip


@pytest.fixture
def run_dir(tiny, tmp_path):
    train(tiny("run=a", "method=hardness"), [])
    return tmp_path / "runs/default/a"


@pytest.mark.slow
def test_evaluation_of_the_last_weights_is_the_runs_own_score(run_dir, capsys):
    assert main(["evaluate", str(run_dir)]) == 0
    found = record.read(next((run_dir / "evaluations").iterdir()))
    trained = record.read(run_dir)
    assert (found.dataset, found.frames) == (trained.dataset, trained.frames)
    for name in ("test/miou", "test/pixel_acc", "test/mean_acc"):
        assert found.metrics[name] == pytest.approx(trained.metrics[name], abs=1e-6)
    assert found.parent == trained.run_id
    out = next((run_dir / "evaluations").iterdir())
    assert np.array_equal(np.load(out / "confusion.npy"), np.load(run_dir / "confusion.npy"))
    assert "mean of" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluation_with_another_inference_and_split(run_dir, tmp_path):
    out = tmp_path / "out"
    options = ["inference=slide", "inference.crop=[24,24]", "inference.stride=[16,16]", "--split", "val"]
    assert main(["evaluate", str(run_dir), *options, "--weights", "best", "--out", str(out)]) == 0
    found = record.read(out)
    assert "val/miou" in found.metrics
    assert found.factors["inference.crop"] == [24, 24]
    assert (out / "per_class.csv").is_file()
    assert len(list((out / "panels").glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optimizer.lr=3"], "an evaluation can set"),
        (["inference.stide=3"], "inference.stide: no such key"),
        (["data.sorce.root=x"], "data.sorce.root: no such key; did you mean 'source'"),
        (["data.num_workers=[1"], "data.num_workers"),
        (["inference=slid"], "slid"),
        (["--split", "tset"], "tset"),
        (["inference=slide", "inference.stride=[99,99]", "inference.crop=[8,8]"], "stride"),
    ],
)
def test_wrong_evaluations_get_one_sentence(run_dir, arguments, said, capsys):
    assert main(["evaluate", str(run_dir), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_predict_any_size_and_mode(run_dir, tmp_path):
    """A folder with a colour JPEG, a grey PNG and an odd size; the labels are the network's own argmax."""
    images = tmp_path / "images/deep"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sizes = {"a.jpg": (40, 57), "c.png": (65, 33)}
    for name, (h, w) in sizes.items():
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).save(images / name)
    Image.fromarray(rng.integers(0, 256, (50, 50), np.uint8)).save(images.parent / "b.png")
    out = tmp_path / "out"
    assert main(["predict", str(run_dir), str(images.parent), "--out", str(out), "--device", "cpu"]) == 0
    for name, size in (sizes | {"b.png": (50, 50)}).items():
        stem = Path(name).stem
        label = np.asarray(Image.open(out / "label" / f"{stem}.png"))
        assert label.shape == size
        assert label.max() < 18
        for kind in ("overlay", "hardness"):
            with Image.open(out / kind / f"{stem}.png") as picture:
                assert picture.size == size[::-1]
    from hardpix.data.images import read_image
    from hardpix.evaluate import loaded

    _, data, method = loaded(run_dir, "last", [])
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (data.info.mean, data.info.std))
    pixels = (torch.as_tensor(read_image(images / "c.png")).float() - mean) / std
    with torch.no_grad():
        expected = method(pixels[None]).argmax(1)[0].numpy()
    assert np.array_equal(np.asarray(Image.open(out / "label/c.png")), expected)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: [str(folder / "missing.png")], "missing.png does not exist"),
        (lambda folder: [str(folder)], "no images"),
    ],
)
def test_wrong_predictions_get_one_sentence(run_dir, tmp_path, make, said, capsys):
    folder = tmp_path / "empty"
    folder.mkdir()
    assert main(["predict", str(run_dir), *make(folder), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_in_one_process_survives_a_failing_job_and_makes_a_table(tmp_path, monkeypatch, capfd):
    """Three jobs of which one fails: the others run, the status says so, the table prints the failure."""
    monkeypatch.chdir(tmp_path)
    arguments = [
        "train",
        "-m",
        *TINY_LINE,
        "study=s",
        "loss=cross_entropy,ohem",
        "seed=0",
        "optimizer.lr=0.01,1e30",
    ]
    arguments[arguments.index("loss=cross_entropy,ohem")] = "loss=cross_entropy"
    assert main(arguments) == 1
    assert "diverged" in capfd.readouterr().out
    runs = [record.read(p.parent) for p in (tmp_path / "runs/s").rglob("run.json")]
    assert sorted(r.status for r in runs) == ["done", "failed"]
    assert len({r.run_id for r in runs}) == 2
    assert main(["table", "runs/s", "--rows", "optimizer.lr"]) == 0
    out = capfd.readouterr().out
    assert "failed" in out
    assert main(["table", "runs/s", "--rows", "loss"]) == 2
    assert "optimizer.lr" in capfd.readouterr().err


@pytest.mark.slow
def test_packing_and_training_on_it_scores_the_same(tmp_path, monkeypatch):
    """The packed form changes where frames come from, not what they are."""
    monkeypatch.chdir(tmp_path)
    line = [o for o in TINY_LINE if not o.startswith("data.source.")]
    rooms = [o for o in TINY_LINE if o.startswith("data.source.")]
    assert main(["data", "pack", "data=synthetic", *rooms, "--out", "packed"]) == 0
    transform = ["data.train_transform.ratio=[0.75,1.5]"]
    assert main(["train", *line, *rooms, "run=raw"]) == 0
    assert main(["train", "data=packed", "data.source.root=packed", *line, *transform, "run=packed"]) == 0
    raw, packed = (record.read(tmp_path / "runs/default" / n) for n in ("raw", "packed"))
    assert raw.metrics["test/miou"] == packed.metrics["test/miou"]


def test_the_demo_ends_in_a_table_and_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [o for o in TINY_LINE if not o.startswith("model.")]
    assert main(["demo", "--out", "demo", "--seeds", "1", *small]) == 0
    assert {r.parent.name for r in Path("demo").rglob("run.json")} == {
        "cross_entropy-0", "ohem-0", "focal-0", "hardness-0",
    }  # fmt: skip
    page = Path("demo/index.html").read_text()
    assert "<title>Hard pixels on synthetic rooms</title>" in page
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert [run["label"].partition(" ")[0] for run in data["runs"]] == ["Baseline"] * 3 + ["HardnessLevel"]
    assert len(data["frames"]) == 3
    runs = {p.parent.name: json.loads(p.read_text()) for p in Path("demo").rglob("run.json")}
    shown = f"{100 * runs['ohem-0']['metrics']['test/miou']:.2f}"
    assert shown in Path("demo/table.md").read_text()  # what came out, not what was typed in
    assert shown in capsys.readouterr().out
    assert main(["demo", "--out", "demo"]) == 2


def readme_block(kind, start):
    """The first fenced block of the README of a kind that begins with a text."""
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)
    return next(block for block in blocks if block.startswith(start))


def test_the_readmes_own_method_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab/__init__.py").write_text(readme_block("python", "# mylab"))
    (tmp_path / "myconf/method").mkdir(parents=True)
    (tmp_path / "myconf/method/top_half.yaml").write_text(readme_block("yaml", "# myconf"))
    line = ["train", "--config-dir", "myconf", "method=top_half", *TINY_LINE, "run=own"]
    assert main(line) == 2  # not trusted: not imported
    assert "mylab" not in sys.modules
    assert main([*line, "trusted=[mylab]"]) == 0
    done = record.read(tmp_path / "runs/default/own")
    assert done.factors["method.share"] == 0.5
    assert main(["evaluate", "runs/default/own"]) == 2  # a run that came from elsewhere would say the same
    assert main(["evaluate", "runs/default/own", "trusted=[mylab]"]) == 0


def test_the_readmes_own_images_train(tmp_path, monkeypatch):
    """A folder of images and masks, sizes differing, without a line of code."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2), ("test", 2)):
        for kind in ("images", "labels"):
            (tmp_path / "my" / split / kind).mkdir(parents=True)
        for i in range(count):
            h, w = 40 + 3 * i, 50 + i
            label = (np.arange(w)[None] > w // 2).astype(np.uint8).repeat(h, 0)
            label[:3] = 255
            image = np.where(label[..., None] == 1, 200, 50) + rng.integers(0, 30, (h, w, 3))
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / "my" / split / "images" / f"{i}.jpg")
            Image.fromarray(label).save(tmp_path / "my" / split / "labels" / f"{i}.png")
    line = [o for o in TINY_LINE if not o.startswith("data.source.")]
    source = ["data=folder", "data.source.root=my", "data.source.classes=[background,crack]"]
    assert main(["train", *source, "data.source.ignore_index=255", *line, "run=own"]) == 0
    confusion = np.load(tmp_path / "runs/default/own/confusion.npy")
    labels = [np.asarray(Image.open(p)) for p in (tmp_path / "my/test/labels").iterdir()]
    assert confusion.sum(1).tolist() == [int(sum((x == c).sum() for x in labels)) for c in (0, 1)]


def test_a_bad_image_does_not_lose_the_others(run_dir, tmp_path, capsys):
    """One line per bad file at the end, the rest labelled, a file that is named twice labelled once."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a", "d"):
        Image.new("RGB", (40, 33)).save(images / f"{name}.png")
    (images / "b.png").write_text("no picture")
    (images / "c.png").touch()
    out = tmp_path / "out"
    given = [
        "predict",
        str(run_dir),
        str(images),
        str(images / "a.png"),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    assert main(given) == 1
    said = capsys.readouterr()
    assert "2 images labelled" in said.out
    faults = [line for line in said.err.splitlines() if line.startswith("hardpix: ")]
    assert [Path(line.split(": ")[1]).name for line in faults] == ["b.png", "c.png"]
    assert sorted(p.name for p in (out / "label").iterdir()) == ["a.png", "d.png"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "tpu"], "--device tpu: must be auto, cpu or cuda"),
        (["--device", "cuda:99"], "--device cuda:99: no such CUDA device here"),
        (["--out", "taken"], "--out taken: taken is a file; name a folder"),
        (["--out", "taken/deep"], "--out taken/deep: taken is a file; name a folder"),
    ],
)
def test_impossible_predictions_are_refused_before_the_run_is_read(
    tmp_path, monkeypatch, options, said, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    Image.new("RGB", (8, 8)).save("a.png")
    assert main(["predict", "run", "a.png", "--out", "out", *options]) == 2
    assert capsys.readouterr().err == f"hardpix: {said}" + ("; use auto, or cpu\n" if "99" in said else "\n")


@pytest.mark.parametrize("content", [b"", b"hello there", b"h\x05.", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04 cut"])
def test_a_file_of_another_kind_is_no_checkpoint(tmp_path, content):
    from hardpix.train.checkpoint import read_checkpoint

    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(HardpixError, match=r"last\.ckpt is not a checkpoint, or is damaged") as error:
        read_checkpoint(tmp_path / "last.ckpt")
    assert "\n" not in str(error.value)
