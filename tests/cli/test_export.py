"""``hardpix export``: what stands in the file predicts what the run predicts."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hardpix import export
from hardpix.cli import main
from hardpix.evaluate import loaded
from hardpix.export import PoolsByMatrix, adaptive_pool, difference
from tests.boundary import clear

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

OTHER_HEADS = (
    "psp",
    "deeplabv3plus head.low_channels=4",
    "ocr",
    "uper",
    "refinenet",
    "segformer",
    "ccnet",
    "dupsampling",
)


@pytest.fixture
def run(tiny, tmp_path):
    """``run("method=hardness", ...)``: the directory of a run of two steps."""
    from hardpix.train.train import train

    def trained(*overrides):
        train(tiny("run=r", "trainer.max_steps=2", "panels=0", *overrides))
        return tmp_path / "runs/default/r"

    return trained


def answer(path, image):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image.numpy()})[0]


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("size", "counts"), [((7, 10), (1, 1)), ((7, 10), (2, 3)), ((5, 4), (6, 6)), ((9, 8), (3, 2))]
)
def test_the_matrices_pool_as_torch_does(size, counts):
    x = noise(2, 3, *size).double()
    assert torch.allclose(adaptive_pool(x, counts), F.adaptive_avg_pool2d(x, counts), rtol=0, atol=1e-12)
    assert adaptive_pool(x, (None, 2)).shape == (2, 3, size[0], 2)
    with PoolsByMatrix():
        assert torch.equal(torch.nn.AdaptiveAvgPool2d(counts)(x), adaptive_pool(x, counts))


def test_differences():
    logits = torch.tensor([[1.0, 4.0], [3.0, -8.0]]).view(1, 2, 1, 2)
    near = logits + torch.tensor([[0.5, 0.0], [-1.75, 0.0]]).view(1, 2, 1, 2)
    assert difference(logits, near, 0.2) == (2, 1, 1.75, 8.0, 1)
    assert difference(logits, near, 0.25) == (2, 1, 1.75, 8.0, 0)
    assert difference(logits, torch.tensor([[[1, 1]]]), 0.2) == (2, 1, 12.0, 8.0, 1)
    assert difference(logits, logits * float("nan"), 1e9).beyond == 2


@pytest.mark.slow
def test_a_run_and_its_file(run, tmp_path, capsys, monkeypatch):
    """Only the segmenter of a hardness run goes out; a file that predicts otherwise never gets its name."""
    folder = run("method=hardness", "head=fcn", "data.train_transform.crop=[24,40]")
    path = tmp_path / "net.onnx"
    assert main(["export", str(folder), "--onnx", str(path), "--weights", "best"]) == 0
    said = capsys.readouterr().out
    assert "test frame, 1 x 3 x 32 x 48: largest difference" in said
    labels = re.findall(r"equal labels (\d+) of (\d+)", said)
    assert [int(count) for _, count in labels] == [1536, 8192]
    assert f"written to {path}: image [B, 3, H, W] -> logits [B, 18, H, W], opset 18" in said
    assert [p.name for p in tmp_path.iterdir() if "onnx" in p.name] == ["net.onnx"]

    _, data, method = loaded(folder, "best", [])
    for (_, image), (equal, _) in zip(export._images(data, None), labels, strict=True):
        with torch.no_grad():
            assert int(equal) >= int(clear(method(image), 1e-5).sum())  # of two equal classes either may win
    for shape in ((3, 3, 50, 70), (1, 3, 97, 33)):
        image = noise(*shape)
        with torch.no_grad():
            expected = method(image).numpy()
        given = answer(path, image)
        assert given.shape == expected.shape
        assert np.abs(given - expected).max() < 1e-5 * np.abs(expected).max()

    model = onnx.load(str(path))
    facts = {p.key.removeprefix("hardpix."): p.value for p in model.metadata_props}
    assert json.loads(facts["mean"]) == list(data.info.mean)
    assert json.loads(facts["std"]) == list(data.info.std)
    assert json.loads(facts["classes"]) == list(data.info.classes)
    assert (facts["input_size"], facts["training_crop"], facts["weights"]) == ("null", "[24, 40]", "best")
    assert not [w.name for w in model.graph.initializer if "hardness" in w.name or "aux" in w.name]
    dims = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "height", "width"]

    before = path.read_bytes()
    monkeypatch.setattr(export, "_compared", lambda *_: False)
    monkeypatch.setattr("hardpix.export.exported", lambda *_: Saved())
    assert main(["export", str(folder), "--onnx", str(path)]) == 1
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if "onnx" in p.name] == ["net.onnx"]
    monkeypatch.undo()
    monkeypatch.setattr(export, "PACKAGES", ("onnx", "no_such_package"))
    assert main(["export", str(folder), "--onnx", str(path)]) == 2
    assert 'needs no_such_package: pip install "hardpix[onnx]"' in capsys.readouterr().err


class Saved:
    """A program that is never looked at."""

    def __init__(self):
        self.model = SimpleNamespace(metadata_props={})

    def save(self, path, external_data):
        path.write_bytes(b"another")


def test_what_cannot_be_asked_for(tmp_path, capsys):
    for words, sentence in (
        (["--opset", "9"], "--opset 9: must lie between 18 and"),
        (["--size", "0", "9"], "--size 0 9: must be pixels"),
        (["--tolerance", "0"], "--tolerance 0.0: must be above 0"),
        (["--onnx", str(tmp_path / "no/net.onnx")], "must be a file in a folder that exists"),
    ):
        assert main(["export", str(tmp_path), "--onnx", str(tmp_path / "net.onnx"), *words]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--onnx", str(tmp_path / "net.onnx")]) == 2
    assert "run.json does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_labels_of_one_size_for_frames_as_they_are(run, tmp_path, capsys):
    """A real picture through the file alone, with what its metadata say."""
    folder = run("head=fcn")
    path = tmp_path / "net.onnx"
    given = ["--output", "labels", "--size", "40", "56", "--opset", "20"]
    assert main(["export", str(folder), "--onnx", str(path), *given]) == 0
    assert "labels [B, 40, 56], opset 20" in capsys.readouterr().out
    model = onnx.load(str(path))
    assert next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) == 20
    facts = {p.key.removeprefix("hardpix."): p.value for p in model.metadata_props}
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mean, std = (np.array(json.loads(facts[k]), np.float32) for k in ("mean", "std"))
    image = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32))
    labels = answer(path, image)
    assert (
        main(
            [
                "predict",
                str(folder),
                str(tmp_path / "a.png"),
                "--out",
                str(tmp_path / "out"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    with torch.no_grad():
        sure = clear(loaded(folder, "last", [])[2](image), 1e-5)[0].numpy()
    assert np.array_equal(labels[0][sure], np.array(Image.open(tmp_path / "out/label/a.png"))[sure])


@pytest.mark.slow
@pytest.mark.parametrize("head", OTHER_HEADS)
def test_heads_of_any_size(run, tmp_path, head):
    assert main(["export", str(run(*f"head={head}".split())), "--onnx", str(tmp_path / "net.onnx")]) == 0


@pytest.mark.slow
def test_a_graph_that_follows_one_size_alone(run, tmp_path, capsys):
    """The pooling window of LR-ASPP is cut to the size that was traced; the check of a second size tells."""
    folder, path = run("head=lraspp"), tmp_path / "net.onnx"
    assert main(["export", str(folder), "--onnx", str(path)]) == 1
    assert "--size H W fixes the size" in capsys.readouterr().err
    assert not path.exists()
    assert main(["export", str(folder), "--onnx", str(path), "--size", "64", "96"]) == 0
    assert "[B, 18, 64, 96]" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["error_prediction", "detail"])
def test_cascades(cascade, stage, tmp_path, capsys):
    assert main(["export", str(cascade(stage)), "--onnx", str(tmp_path / "net.onnx")]) == 0
    assert "-> logits [B, 18, H, W]" in capsys.readouterr().out
