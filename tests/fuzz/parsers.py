"""The readers of files that come from others, and what each is fed. A reader returns, or raises one sentence."""

# ruff: noqa: E501 -- tables

import io
import json
import pickle
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from hardpix import record, scores
from hardpix.config.compose import compose, validate
from hardpix.data import Coco, Listed, Packed, files, images, matlab, patches
from hardpix.data.classes import read_classes
from hardpix.data.labels import OwnLabels
from hardpix.data.prepare import archive, recipe
from hardpix.data.sets import hn, rgbd
from hardpix.data.sets.cifar100 import read_array_pickle
from hardpix.draw import charts
from hardpix.evaluate import override
from hardpix.page import runs as page_runs
from hardpix.sweep.stages import read_chain
from hardpix.sweep.study import read_study
from hardpix.tables.columns import read_classes as read_per_class
from hardpix.train import checkpoint, loggers, rundir
from tests.fuzz.inputs import as_json, as_yaml, damaged, odd


class Parser(NamedTuple):
    read: object  # (the file or folder) -> anything; raises HardpixError alone
    inputs: object  # a strategy of bytes, or of what `write` takes
    name: str = "file"  # of the file
    tells: bool = True  # the sentence names the file
    share: float = 1.0  # of the examples: composing takes a tenth of a second
    write: object = None  # (path, input): how it gets onto the disk


def _text(*lines):
    return "\n".join(lines).encode() + b"\n"


def _coco(path):
    source = Coco(str(path.parent), images=".", annotations=path.name)
    frames = source.frames_as_they_are("train", frozenset({"image", "label"}))
    for index in range(len(frames)):
        frames.label(index)


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 5}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 2, "segmentation": [[0, 0, 4, 0, 4, 3]], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 3, "segmentation": {"size": [4, 5], "counts": [3, 7, 10]}},
        {"id": 3, "image_id": 1, "category_id": 3, "segmentation": {"size": [4, 5], "counts": "37:"}},
    ],
    "categories": [{"id": 2, "name": "road"}, {"id": 3, "name": "car"}],
}  # fmt: skip
RECORD = {
    "schema": 1, "run_id": "a", "status": "done", "factors": {"method.alpha": 0.5}, "metrics": {"test/miou": 0.5, "x": None},
    "seed": 0, "parent": None, "code": {"torch": "2"}, "host": {"pid": "1"}, "started": "2026-01-01T00:00:00+00:00",
    "frames": {"a/train": 3}, "overrides": ["a=1"],
}  # fmt: skip
STUDY = {
    "study": "a", "overrides": ["method=hardness", "data.batch_size=2"], "axes": {"loss": ["cross_entropy", "ohem"], "method.alpha": "range(1,4)"},
    "for": {"loss=ohem": {"loss.thresh": [0.5, 0.7]}}, "rows": [["head=psp"], {"head": "fcn"}], "seeds": [0, 1],
    "on_error": "retry", "retries": 2, "launcher": {"workers": 2, "devices": [0]},
}  # fmt: skip
CHAIN = {
    "stages": {"a": {"overrides": ["data=camvid"]}, "b": {"parent": "a", "overrides": ["method=detail"]}}
}
CLASSES = {"classes": ["road", "car"], "palette": [[1, 2, 3], [4, 5, 6]]}
HN = {"schema": hn.SCHEMA, "settings": {}, "source": {}, "splits": {"train": {
    "status": "done", "frames": 1, "labelled": 1, "failed": 0, "rejected": {"a": 0}}}}  # fmt: skip
PACKED = {
    "schema": 1, "info": {"name": "a", "classes": ["a"], "palette": [[1, 2, 3]], "ignore_index": 255, "mean": [1, 2, 3], "std": [1, 2, 3],
    "depth_max": None, "provides": ["image"], "main_metric": "miou"}, "splits": {"train": {}}, "keys": ["image"],
}  # fmt: skip
METRICS = _text(
    "step,train/loss,val/miou,test/miou,cross_stitch/1/a", "0,1.5,,,0.5", "1,1.25,0.5,,", "2,,,0.5,0.75"
)


@cache
def _config():
    return rundir.plain(compose(["method=hardness", "run=a"]))


def _read_config(path):
    cfg = rundir.read_config(path.parent)
    override(cfg, [])
    validate(cfg)


@st.composite
def _overrides(draw):
    flat = record.flatten(_config())
    keys = st.sampled_from(
        [*flat, "method", "data", "loss", "backbone", "trusted", "hydra.run.dir", "parent_config", "x"]
    )
    values = odd | st.sampled_from(
        ["hardness", "synthetic", "[a,b]", "{a: 1}", "1,2", "range(1,3)", "null", "${seed}", "glob(*)"]
    )
    signs = st.sampled_from(["", "", "", "+", "++", "~", "+method.", "data.source."])
    return [f"{draw(signs)}{draw(keys)}={draw(values)}" for _ in range(draw(st.integers(1, 3)))]


def _pickled():
    old = [
        pickle.dumps({b"data": [1, b"x"], b"labels": list(range(5)), b"n": None}, protocol=p)
        for p in (0, 2, 4)
    ]
    return damaged(
        [
            *old,
            b"\x80\x02}q\x00U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04s.",
        ]
    )


def _picture(kind, mode):
    image = Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)).convert(mode)
    image.save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def _pictures():
    return damaged([_picture(k, m) for k, m in (("PNG", "RGB"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"),
                                                ("JPEG", "CMYK"), ("TIFF", "RGB"), ("TIFF", "I;16"), ("PNG", "LA"))])  # fmt: skip


def _read_pictures(path):
    for read in (images.read_colour, images.read_index, images.read_depth, images.image_size, images.traits):
        try:
            read(path)
        except images.DataError as error:
            _one_line(error, path)
    images.orientation(path)
    images.read_colour(path)


def _one_line(error, path):
    assert "\n" not in str(error), str(error)
    assert str(path) in str(error), str(error)


def _checkpoints():
    buffer = io.BytesIO()
    torch.save(
        {"state_dict": {"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.int64)}, "global_step": 3},
        buffer,
    )
    return damaged([buffer.getvalue()])


def _tensors():
    from safetensors.torch import save

    return damaged([save({"a": torch.ones(3)}, {"hardpix.classes": '["a"]', "x": "y"})])


def _read_tensors(path):
    checkpoint.read_weights(path)
    checkpoint.weights_classes(path)


_part = st.sampled_from(
    ["a", "b", "..", ".", "", "C:", "a\\b", "a\0b", "__MACOSX", ".DS_Store", "é", "a" * 300, "\udc80"]
) | st.text(max_size=4)
_names = st.lists(st.lists(_part, min_size=1, max_size=5).map("/".join), min_size=1, max_size=5)


def _write_archive(path, given):
    names, kind = given
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                info = zipfile.ZipInfo("x")
                info.filename = name.encode("utf-8", "replace").decode()
                file.writestr(info, b"text")
        return
    with tarfile.open(path, "w") as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.size = 4 if kind == tarfile.REGTYPE else 0
            info.linkname = "../../x"
            file.addfile(info, io.BytesIO(b"text"))


def _read_archive(path):
    target = path.parent / "out" / "target"
    limits = archive.Limits.of(target)
    chosen = archive.judge(path, archive.list_members(path), lambda name: True, target, limits)
    for member in chosen:
        assert (target / member.name).resolve().is_relative_to(target.resolve()), member.name
    target.mkdir(parents=True, exist_ok=True)
    archive.unpack(path, chosen, target)
    beside = [p for p in path.parent.rglob("*") if p.is_file() and p != path and not p.is_relative_to(target)]
    assert beside == [], beside


def _run(folder):
    return type("Run", (), {"directory": folder})()


def _mat():
    from scipy.io import savemat

    savemat(buffer := io.BytesIO(), {"depths": np.ones((2, 3)), "names": np.array(["a", "b"], dtype=object)})
    return damaged([buffer.getvalue()])


@cache
def _archive(name):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        _write_archive(path, (["a/b.png", "c.png"], tarfile.REGTYPE))
        return path.read_bytes()


PARSERS = {
    "overrides": Parser(lambda path: validate(compose(json.loads(path.read_text()))), _overrides().map(lambda o: json.dumps(o).encode()), tells=False, share=0.1),
    "config.yaml of a run": Parser(_read_config, st.deferred(lambda: as_yaml(_config())), "config.yaml", tells=False, share=0.3),
    "study file": Parser(lambda path: read_study(["x"], path.parent.parent), as_yaml(STUDY), "studies/x.yaml", tells=False),
    "chain file": Parser(lambda path: read_chain("x", path.parent.parent), as_yaml(CHAIN), "studies/x.yaml"),
    "checkpoint manifest": Parser(lambda path: (checkpoint.manifest(path.parent), checkpoint.problem(path)),
                                  as_json({"last.ckpt": {"sha256": "a", "bytes": 3, "step": 1}, "manifest.json": {"bytes": 1}}), "manifest.json"),
    "checkpoint": Parser(checkpoint.read_checkpoint, st.deferred(_checkpoints), "last.ckpt"),
    "safetensors": Parser(_read_tensors, st.deferred(_tensors), "a.safetensors"),
    "run record": Parser(lambda path: record.read(path.parent), as_json(RECORD), "run.json"),
    "classes of a run": Parser(lambda path: rundir.read_classes(path.parent), as_json(["a", "b"]), "classes.json"),
    "class table, JSON": Parser(lambda path: OwnLabels(classes=str(path), palette=None), as_json(CLASSES), "c.json", tells=False),
    "class table, CSV": Parser(lambda path: read_classes(str(path)), damaged([_text("name,r,g,b,id", "road,1,2,3,7", "car,4,5,6,8")]), "c.csv"),
    "class table, text": Parser(lambda path: read_classes(str(path)), damaged([_text("road", "car")]), "c.txt"),
    "listed files, CSV": Parser(lambda path: Listed(str(path), classes=["a", "b"]).files("train"), damaged([_text("image,label,split", "a.png,b.png,train", "c.png,d.png,val")]), "l.csv"),
    "listed files, JSON": Parser(lambda path: Listed(str(path), classes=["a", "b"]).files("train"), as_json([{"image": "a.png", "label": "b.png", "split": "train"}]), "l.json"),
    "listed files, JSON lines": Parser(lambda path: Listed(str(path), classes=["a", "b"]).files("train"), as_json({"image": "a.png", "label": "b.png", "split": "train"}), "l.jsonl"),
    "COCO annotations": Parser(_coco, as_json(COCO), "coco.json"),
    "CIFAR pickle": Parser(read_array_pickle, _pickled(), "train"),
    "split list": Parser(files.read_list, damaged([_text("a/1", "a/2")]), "train.txt"),
    "camera, text": Parser(files.read_intrinsics, damaged([_text("500 0 320", "0 500 240", "0 0 1")]), "camera.txt"),
    "camera, Open3D": Parser(rgbd.read_open3d_camera, as_json({"intrinsic_matrix": [500, 0, 0, 0, 500, 0, 320, 240, 1]}), "camera.json"),
    "time stamps": Parser(rgbd.read_stamps, damaged([_text("# a", "1305031102.175 rgb/1.png", "1305031102.2 rgb/2.png")]), "rgb.txt"),
    "sizes of tiles": Parser(patches.read_sizes, damaged([_text("frame,height,width", "P0001,800,900")]), "sizes.csv"),
    "height labels": Parser(hn.read_facts, as_json(HN), "hn.json"),
    "height listing": Parser(hn.read_listing, as_json({"name": "a", "image": "a.png", "rejected": None}), "list.jsonl"),
    "packed data": Parser(lambda path: Packed(str(path.parent)), as_json(PACKED), "manifest.json", tells=False),
    "journal of prepare": Parser(lambda path: recipe.read_journal(path.parent), as_json({"recipe": "a", "options": {}, "hardpix": "0"}), recipe.JOURNAL),
    "metrics.csv, curves": Parser(lambda path: page_runs.curves(_run(path.parent)), damaged([METRICS]), "metrics.csv"),
    "metrics.csv, factors": Parser(lambda path: charts.read_factors(path.parent), damaged([METRICS]), "metrics.csv", tells=False),
    "metrics.csv, resumed": Parser(loggers._read_rows, damaged([METRICS]), "metrics.csv"),
    "per_image.csv": Parser(lambda path: scores.read_per_image(path.parent), damaged([_text("name,pixels,pixel_acc,miou,counts", "a,9,0.5,0.5,0:1/2/3")]), scores.PER_IMAGE),
    "per_class.csv": Parser(lambda path: read_per_class(path.parent), damaged([_text("class,iou,acc", "road,0.5,0.5")]), "per_class.csv"),
    "image": Parser(_read_pictures, st.deferred(_pictures), "a.png"),
    "MATLAB file": Parser(lambda path: matlab.read_variable(path, "depths", "names"), st.deferred(_mat), "a.mat"),
    "names in a zip": Parser(_read_archive, st.tuples(_names, st.none()), "a.zip", write=_write_archive),
    "names in a tar": Parser(_read_archive, st.tuples(_names, st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])), "a.tar", write=_write_archive),
    "archive, zip": Parser(_read_archive, st.deferred(lambda: damaged([_archive("a.zip")])), "a.zip"),
    "archive, tar": Parser(_read_archive, st.deferred(lambda: damaged([_archive("a.tar")])), "a.tar"),
}  # fmt: skip
