"""Checkpoints, weights, images and run directories from strangers: refused in a sentence, nothing run or changed."""

import functools
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hardpix import record
from hardpix.cli import main
from hardpix.config import safe_files
from hardpix.data.images import read_colour, read_depth, read_index
from hardpix.page.page import write_page
from hardpix.sweep import sweeper
from hardpix.train import checkpoint, rundir
from hardpix.train.checkpoint import init_from, manifest, read_checkpoint
from hardpix.train.results import write_panels
from hardpix.train.rundir import locked_run_dir as held_by
from hardpix.train.train import inspect, train
from hardpix.types import ConfigError, DataError, HardpixError
from tests.conftest import TINY

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(run, tmp_path):
    """The run's directory under ``runs_dir`` ``tmp_path/runs``, to be changed."""
    other = tmp_path / "runs/default/a"
    shutil.copytree(run, other)
    return other


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def sentence(path):
    with pytest.raises(HardpixError) as error:
        read_checkpoint(path)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    assert "weights_only" not in text
    return text


def content_of(run):
    return torch.load(run / rundir.LAST, weights_only=True)


@pytest.mark.parametrize(
    "where", ["top", "state_dict", "hyper_parameters", "optimizer_states", "callbacks", "loops"]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_payload_anywhere_in_a_checkpoint_is_not_run(run, tmp_path, where, legacy):
    marker, path = tmp_path / "ran", tmp_path / "a.ckpt"
    content = content_of(run)
    if where == "top":
        content["x"] = Payload(marker)
    else:
        content[where] = {"x": Payload(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    sentence(path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(5))
def test_a_bare_pickle_is_not_run(tmp_path, protocol):
    marker, path = tmp_path / "ran", tmp_path / "a.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Payload(marker)}, protocol=protocol))
    sentence(path)
    assert not marker.exists()


@pytest.mark.slow
def test_keys_that_lightning_would_call_are_not_called(copy, tmp_path, tiny):
    marker = tmp_path / "ran"
    (tmp_path / "trap2.py").write_text(f"def go(*a, **k):\n    open({str(marker)!r}, 'w')\n")
    content = content_of(copy) | {
        "_instantiator": "trap2.go",
        "_class_path": "trap2.go",
        "hyper_parameters": {
            "_target_": "trap2.go",
            "_instantiator": "trap2.go",
            "x": {"_target_": "trap2.go"},
        },
    }
    torch.save(content, copy / rundir.LAST)
    (copy / "checkpoints/manifest.json").unlink()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from hardpix.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", str(copy)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    train(tiny("run=b", f"init_from='{copy}'", "trainer.max_steps=1", "panels=0"))
    train(tiny("run=a", "resume=true", "trainer.max_steps=3", "panels=0", "scheduler=constant"))
    assert not marker.exists()


@pytest.mark.parametrize(
    "path", ["http://example.com/a.ckpt", "https://x/a.ckpt", "file:///etc/passwd", "s3://x/a", "hf://a/b"]
)
def test_an_url_is_no_path(tiny, path):
    with pytest.raises(HardpixError, match="a URL is not read; fetch the file"):
        train(tiny("run=a", f"init_from='{path}'"))


def test_a_compressed_part_is_refused_by_the_header(tmp_path):
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"\0" * 10_000_000)
    assert path.stat().st_size < 20_000
    assert "its part a/data.pkl is compressed" in sentence(path)


def test_bits_and_ends(run, tmp_path):
    whole = (run / rundir.LAST).read_bytes()
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    path = tmp_path / rundir.LAST
    for place in range(1, 20):
        path.write_bytes(whole[: len(whole) * place // 20])
        assert "is damaged: it has" in sentence(path)
        turned = bytearray(whole)
        turned[len(whole) * place // 20] ^= 1 << place % 8
        path.write_bytes(turned)
        assert "sha256" in sentence(path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1]",
        b'{"last.ckpt": 1}',
        b"\xff",
        b"[" * 100_000,
        b'{"last.ckpt": {"bytes": ' + b"9" * 5000 + b"}}",
    ],
)
def test_a_manifest_that_is_none(copy, text):
    (copy / "checkpoints/manifest.json").write_bytes(text)
    with pytest.raises(HardpixError, match=r"manifest\.json is damaged") as error:
        read_checkpoint(copy / rundir.LAST)
    assert "\n" not in str(error.value)


def test_a_state_that_is_not_of_tensors(tmp_path):
    for state in ([1], {"a": 1}, {1: torch.ones(1)}, None):
        torch.save({"state_dict": state}, tmp_path / "a.ckpt")
        assert "state_dict is not of tensors" in sentence(tmp_path / "a.ckpt")


def test_a_checkpoint_that_would_have_a_file_deleted(run, tmp_path):
    """Lightning deletes a former best checkpoint by the path that the checkpoint tells."""
    content = content_of(run)
    (key,) = (k for k in content["callbacks"] if k.startswith("ModelCheckpoint"))
    content["callbacks"][key]["best_model_path"] = str(tmp_path / "checkpoints/../../precious")
    torch.save(content, tmp_path / "a.ckpt")
    assert "which a run could delete" in sentence(tmp_path / "a.ckpt")


FILES = (".lock", "run.json", "config.yaml", "config_composed.yaml", "classes.json", "metrics.csv", "output.log",
         "confusion.npy", "checkpoints/last.ckpt", "checkpoints/manifest.json", "wandb/run-1/files/a.txt")  # fmt: skip
FOLDERS = ("checkpoints", "panels", "evaluations", "wandb", "a/b")


def elsewhere(tmp_path):
    """A file and a folder that are none of a run's, and what they hold."""
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "precious", tmp_path / "other/test_00000.png"):
        path.write_text("step,x\n")
    return lambda: [p.read_text() for p in (tmp_path / "precious", *(tmp_path / "other").iterdir())]


def put(path, make):
    """``make(path)`` in place of what is there, which the function returned puts back."""
    kept = path.with_name(f"{path.name}.kept")
    made = next((p for p in reversed(path.parents) if not p.exists()), None)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(kept)
    make(path)

    def back():
        path.unlink()
        if kept.exists():
            kept.rename(path)
        if made is not None:
            shutil.rmtree(made)

    return back


def test_links_that_lead_out_of_a_run_are_not_written_through(copy, tmp_path, tiny):
    cfg = tiny("run=a", "resume=true", "trainer.max_steps=3", "panels=1", "scheduler=constant")
    held = elsewhere(tmp_path)
    shutil.rmtree(copy / "panels", ignore_errors=True)
    for name in (*FILES, *FOLDERS):
        target = tmp_path / ("other" if name in FOLDERS else "precious")
        back = put(copy / name, lambda path, target=target: path.symlink_to(target))
        with pytest.raises(ConfigError, match=rf"{re.escape(name)} is a link"):
            train(cfg)
        back()
        assert held() == ["step,x\n"] * 2
    inspect(copy, cfg)  # nothing of it is left that would be refused


def test_pipes_and_second_names_in_a_run_are_refused_and_waited_for_by_nobody(copy, tmp_path, tiny):
    cfg = tiny("run=a", "resume=true", "trainer.max_steps=3", "scheduler=constant")
    held = elsewhere(tmp_path)
    for name in FILES:
        back = put(copy / name, os.mkfifo)
        with pytest.raises(ConfigError, match=rf"{re.escape(name)} is neither a file nor a folder"):
            train(cfg)
        back()
    for name in safe_files.IN_PLACE:
        back = put(copy / name, lambda path: os.link(tmp_path / "precious", path))
        with pytest.raises(ConfigError, match=rf"{re.escape(name)} is also a file elsewhere"):
            train(cfg)
        back()
        assert held() == ["step,x\n"] * 2
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(HardpixError, match=r"run\.json is no file"):
        record.read(tmp_path)
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(HardpixError, match=r"manifest\.json is no file"):
        manifest(tmp_path)


def test_links_that_a_run_makes_itself_are_no_obstacle(copy, tmp_path, tiny):
    cfg = tiny("run=a", "resume=true", "trainer.max_steps=3", "panels=0", "scheduler=constant")
    (copy / "wandb/offline-run-1/logs").mkdir(parents=True)
    (copy / "wandb/latest-run").symlink_to("offline-run-1")
    (copy / "wandb/offline-run-1/logs/debug-core.log").symlink_to(tmp_path / "cache/core.log")
    os.link(copy / rundir.LAST, copy / rundir.PREVIOUS)  # as a stop between two names leaves it
    inspect(copy, cfg)
    (copy / "wandb/latest-run").unlink()
    (copy / "wandb/latest-run").symlink_to("../checkpoints")
    with pytest.raises(ConfigError, match="latest-run is a link"):
        inspect(copy, cfg)


@pytest.mark.parametrize("make", [lambda path, to: path.symlink_to(to), lambda path, to: os.link(to, path),
                                  lambda path, to: os.mkfifo(path), lambda path, to: path.mkdir()])  # fmt: skip
def test_a_lock_is_a_file_of_its_own(tmp_path, make):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a").mkdir()
    make(tmp_path / "a/.lock", tmp_path / "precious")
    with pytest.raises(ConfigError, match=r"a/\.lock"), held_by(tmp_path / "a"):
        pytest.fail("held")
    assert (tmp_path / "precious").read_text() == "mine"


def test_results_are_not_written_through_links(copy, tmp_path, tiny, capsys):
    """Of an evaluation, a prediction, a study; a page takes the place of a link."""
    held = elsewhere(tmp_path)
    (copy / "evaluations").symlink_to(tmp_path / "other")
    assert main(["evaluate", str(copy)]) == 2
    assert "evaluations is a link" in capsys.readouterr().err
    (copy / "evaluations").unlink()
    for out in ("out", "pictures"):
        (tmp_path / out).mkdir()
    (tmp_path / "out/panels").symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="out/panels is a link"):
        write_panels(None, None, tmp_path / "out/panels", split="test", count=1)
    (tmp_path / "pictures/overlay").symlink_to(tmp_path / "other")
    Image.new("RGB", (48, 32)).save(tmp_path / "test_00000.png")
    words = [
        str(copy),
        str(tmp_path / "test_00000.png"),
        "--out",
        str(tmp_path / "pictures"),
        "--device",
        "cpu",
    ]
    assert main(["predict", *words]) == 2
    assert "pictures/overlay is a link" in capsys.readouterr().err
    (tmp_path / "page.html").symlink_to(tmp_path / "precious")
    write_page("<html>", tmp_path / "page.html")
    assert not (tmp_path / "page.html").is_symlink()
    assert held() == ["step,x\n"] * 2


def test_a_study_is_not_written_through_links(tmp_path, capsys, monkeypatch):
    held = elsewhere(tmp_path)
    monkeypatch.setattr(sweeper, "run", lambda request, study, jobs: 0)  # trains nothing
    words = [*TINY, "seed=0,1", "study=s", f"runs_dir={tmp_path}/runs"]
    assert main(["sweep", *words]) == 0
    study = tmp_path / "runs/s"
    study.mkdir(parents=True)
    (study / "earlier").symlink_to(tmp_path / "other")  # a run that lies elsewhere, for the table
    assert main(["sweep", *words]) == 0
    (study / ".optuna.lock").symlink_to(tmp_path / "precious")
    assert main(["sweep", *words]) == 2
    assert ".optuna.lock is a link" in capsys.readouterr().err
    (study / ".optuna.lock").unlink()
    monkeypatch.setattr(sweeper, "run", lambda request, study, jobs: jobs[1].run_dir.mkdir())
    main(["sweep", *words])
    job = next(p for p in study.iterdir() if not p.is_symlink())
    (job / "output.log").symlink_to(tmp_path / "precious")
    assert main(["sweep", *words]) == 2
    assert "output.log is a link" in capsys.readouterr().err
    assert held() == ["step,x\n"] * 2


@pytest.mark.slow
def test_weights_go_out_and_come_in_as_safetensors(run, tmp_path, tiny, capsys):
    path = tmp_path / "net.safetensors"
    assert main(["export", str(run), "--safetensors", str(path)]) == 0
    state, wanted = checkpoint.read_weights(path), content_of(run)["state_dict"]
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[k], wanted[k]) for k in wanted)
    facts = checkpoint.weights_facts(path)
    assert json.loads(facts["classes"]) == json.loads((run / rundir.CLASSES).read_text())
    assert yaml.safe_load(facts["config"])["method"]["_target_"] == "hardpix.methods.Baseline"
    cfg = tiny("run=b", f"init_from='{path}'", "trainer.max_steps=1", "panels=0")
    capsys.readouterr()
    train(cfg)
    told = capsys.readouterr().out
    assert (
        f"{len(wanted)} of {len(wanted)} tensors from {path}" in told
    )  # the classifier too: the same classes


def test_a_checkpoint_of_others_becomes_a_file_that_runs_nothing(tmp_path, capsys):
    """Weights alone, or with a state beside them; what is more than plain data is refused, with what to do."""
    state = {"a.weight": torch.rand(2, 3), "n": torch.tensor(4)}
    target = tmp_path / "net.safetensors"
    for name, content in (
        ("a.pth", state),
        ("a.ckpt", {"state_dict": state, "epoch": 3, "_target_": "trap"}),
    ):
        torch.save(content, tmp_path / name)
        assert main(["export", str(tmp_path / name), "--safetensors", str(target)]) == 0
        found = checkpoint.read_weights(target)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[k], state[k]) for k in state)
        assert set(checkpoint.weights_facts(target)) == {"source"}
        target.unlink()
    marker = tmp_path / "marker"
    torch.save({"state_dict": state, "x": Payload(marker)}, tmp_path / "b.ckpt")
    capsys.readouterr()
    assert main(["export", str(tmp_path / "b.ckpt"), "--safetensors", str(target)]) == 2
    assert "weights of others come as .safetensors" in capsys.readouterr().err
    assert not target.exists()
    assert not marker.exists()


def test_a_safetensors_file_without_classes_gives_no_classifier(run, tmp_path):
    from safetensors.torch import save_file

    state = content_of(run)["state_dict"]
    save_file(state, tmp_path / "a.safetensors")
    assert checkpoint.weights_classes(tmp_path / "a.safetensors") is None
    from hardpix.train.build import build
    from hardpix.train.rundir import read_config

    _, method = build(read_config(run), training=False)
    assert "classes of that run unknown" in init_from(method, str(tmp_path / "a.safetensors"), ["a"])


@pytest.mark.parametrize(
    "content", [b"", b"{}", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]", b"\x80\x02}."]
)
def test_a_safetensors_file_that_is_none(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert "not a safetensors file" in sentence(tmp_path / "a.safetensors")


def test_what_a_file_of_weights_cannot_be_asked_for(run, tmp_path, capsys):
    for words, said in (
        (["--safetensors", str(tmp_path / "a.pt")], "must be a file NAME.safetensors"),
        (["--safetensors", str(tmp_path / "no/a.safetensors")], "in a folder that exists"),
        (
            ["--safetensors", str(tmp_path / "a.safetensors"), "data=camvid"],
            "takes the weights of the run as they are",
        ),
    ):
        assert main(["export", str(run), *words]) == 2
        assert said in capsys.readouterr().err


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path, side=60_000):
    """A PNG whose pixels are there, zero and compressed a thousandfold; its beginning alone."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = zlib.compress(b"\0" * 100_000)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    assert path.stat().st_size < 1000


@pytest.mark.slow
def test_a_picture_that_claims_ten_gigabytes_takes_no_memory(tmp_path):
    bomb(tmp_path / "a.png")
    code = (
        "import resource, sys; from hardpix.data import images; from pathlib import Path\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 60_000_000,) * 2)\n"
        "for read in (images.read_colour, images.read_index, images.read_depth, images.image_size):\n"
        "    try: read(Path(sys.argv[1])); sys.exit(1)\n"
        "    except images.DataError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all(str(tmp_path / "a.png") in line and "3600000000 pixels" in line for line in lines), lines


def picture(path, mode="RGB", kind="PNG", **options):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    if mode in ("I", "F"):
        image = Image.fromarray(pixels.astype(np.int32 if mode == "I" else np.float32))
    else:
        image = Image.fromarray(pixels).convert(mode)
    image.save(path, kind, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "I;16", "RGBA"])
def test_no_damaged_png_is_read_as_another_picture(tmp_path, mode):
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(np.random.default_rng(0).integers(0, 65535, (40, 50), dtype=np.uint16)).save(path)
    else:
        picture(path, mode)
    read = functools.partial(read_colour, image_range=(0, 65535) if mode == "I;16" else None)
    whole, right = path.read_bytes(), read(path)
    for place in range(20):
        path.write_bytes(whole[: len(whole) * place // 20])
        with pytest.raises(DataError) as error:
            read(path)
        assert "\n" not in str(error.value)
    dice = np.random.default_rng(1)
    for _ in range(300):
        turned = bytearray(whole)
        turned[dice.integers(8, len(whole))] ^= 1 << int(dice.integers(8))
        path.write_bytes(turned)
        try:
            np.testing.assert_array_equal(read(path), right)
        except DataError as refusal:
            told = str(refusal)
            assert (str(path) in told, "\n" in told) == (True, False)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_damaged_files_without_checksums_crash_nothing(tmp_path, kind):
    path = picture(tmp_path / f"a.{kind.lower()}", kind=kind)
    whole, dice = path.read_bytes(), np.random.default_rng(1)
    for _ in range(300):
        turned = bytearray(whole)
        turned[dice.integers(len(whole))] ^= 1 << int(dice.integers(8))
        path.write_bytes(turned)
        try:
            assert read_colour(path).dtype == np.uint8
        except DataError as refusal:
            told = str(refusal)
            assert (str(path) in told, "\n" in told) == (True, False)


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LAB", "TIFF"), ("F", "TIFF")]
)
def test_modes_that_are_not_converted_are_named(tmp_path, mode, kind):
    path = tmp_path / "a.tif"
    if mode == "LAB":
        Image.new("LAB", (9, 8)).save(path, kind)
    else:
        picture(path, mode, kind)
    for read in (read_colour, read_index, read_depth):
        with pytest.raises(DataError, match=mode):
            read(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_that_are_converted(tmp_path, mode):
    path = picture(tmp_path / "a.png", mode)
    with Image.open(path) as image:
        wanted = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(read_colour(path), wanted)


def test_numbers_beyond_sixteen_bits_do_not_wrap_around(tmp_path):
    path = tmp_path / "a.tif"
    for value in (70_000, -1):
        Image.fromarray(np.full((4, 5), value, dtype=np.int32)).save(path)
        for read in (read_index, read_depth, read_colour):
            with pytest.raises(DataError, match=rf"values from {value} to {value}"):
                read(path)
    Image.fromarray(np.full((4, 5), 65_535, dtype=np.int32)).save(path)
    assert (read_index(path) == 65_535).all()


def test_a_file_of_several_pictures_is_refused(tmp_path):
    """Of an animation, or of the pages of a TIFF, one would be read without a word."""
    first, second = Image.new("RGB", (6, 5), (1, 2, 3)), Image.new("RGB", (6, 5), (200, 100, 50))
    for name in ("a.png", "a.tif"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        for read in (read_colour, read_index, read_depth):
            with pytest.raises(DataError, match="holds 2 pages"):
                read(tmp_path / name)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "PPM", "WEBP", "ICO", "EPS", "PDF", "TGA"])
def test_other_formats_are_not_opened_whatever_they_are_called(tmp_path, kind):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", kind)
    with pytest.raises(DataError, match="not a readable PNG, JPEG, TIFF image"):
        read_colour(tmp_path / "a.png")


def test_aliases_of_a_configuration_are_not_expanded(copy):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    (copy / rundir.CONFIG).write_text("\n".join(lines))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(HardpixError, match="alias"):
        rundir.read_config(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch MARKER']",
        "a: !!python/name:os.system",
        "a: !!python/module:os",
    ],
)
def test_tags_of_yaml_run_nothing(copy, tmp_path, text):
    marker = tmp_path / "ran"
    (copy / rundir.CONFIG).write_text(text.replace("MARKER", str(marker)))
    with pytest.raises(HardpixError, match="is damaged"):
        rundir.read_config(copy)
    assert not marker.exists()
