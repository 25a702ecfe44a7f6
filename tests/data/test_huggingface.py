"""A Hugging Face dataset on disk: both layouts, faults that name the row, and no network."""

import io
import multiprocessing
import os
import pickle
import socket

import numpy as np
import pytest
from PIL import Image

from hardpix.data import HuggingFace
from hardpix.data.statistics import class_counts
from hardpix.types import ConfigError, DataError

datasets = pytest.importorskip("datasets")

BOTH = frozenset({"image", "label"})
CLASSES = ["a", "b", "c"]


def encoded(array, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(file, format=form)
    return file.getvalue()


def row(n, **changes):
    """Picture value 10 n, label n, but for a void corner."""
    label = np.full((4, 6), n)
    label[0, 0] = 255
    return {"pic": encoded(np.full((4, 6, 3), 10 * n)), "mask": encoded(label), "id": f"frame{n}"} | changes


def made(rows):
    wrapped = [{k: {"bytes": v, "path": None} if k != "id" and isinstance(v, bytes) else v for k, v in r.items()}
               for r in rows]  # fmt: skip
    features = datasets.Features(
        {"pic": datasets.Image(), "mask": datasets.Image(), "id": datasets.Value("string")}
    )
    columns = {key: [r[key] for r in wrapped] for key in features}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No connection can be made, and no progress is drawn."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HARDPIX_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


@pytest.fixture(params=["disk", "parquet", "folder", "binary"])
def root(request, tmp_path):
    data, val = made([row(2), row(0), row(1)]), made([row(1)])
    place = tmp_path / "set"
    if request.param == "disk":
        datasets.DatasetDict(train=data, val=val).save_to_disk(str(place))
    elif request.param == "folder":
        for split, part in (("train", data), ("val", val)):
            (place / split).mkdir(parents=True)
            part.to_parquet(str(place / split / "0.parquet"))
    elif request.param == "parquet":
        (place / "data").mkdir(parents=True)
        data.select([0]).to_parquet(str(place / "data" / "train-00000-of-00002.parquet"))
        data.select([1, 2]).to_parquet(str(place / "data" / "train-00001-of-00002.parquet"))
        val.to_parquet(str(place / "data" / "val-00000-of-00001.parquet"))
    else:
        plain = {k: [row(n)[k] for n in (2, 0, 1)] for k in ("pic", "mask", "id")}
        types = datasets.Features({k: datasets.Value("string" if k == "id" else "binary") for k in plain})
        parts = {"train": datasets.Dataset.from_dict(plain, features=types)}
        datasets.DatasetDict(**parts, val=parts["train"].select([2])).save_to_disk(str(place))
    return str(place)


def source(root, **options):
    return HuggingFace(root, **({"classes": CLASSES, "image": "pic", "label": "mask"} | options))


def test_rows_are_frames_in_order(root):
    frames = source(root).frames("train", BOTH)
    assert [frames.name(i) for i in range(len(frames))] == ["000000", "000001", "000002"]
    for index, n in enumerate((2, 0, 1)):
        sample = frames.load(index)
        assert sample["image"].shape == (3, 4, 6)
        assert sample["image"].unique().tolist() == [10 * n]
        assert sample["label"][0, 0] == 255
        assert sample["label"].flatten()[1:].unique().tolist() == [n]
    assert len(source(root).frames("val", BOTH)) == 1
    assert source(root, names="id").frames("train", BOTH).name(0) == "frame2"
    assert "label" not in source(root).frames("train", frozenset({"image"})).load(0)


def test_values_are_mapped_and_said(root):
    mapped = source(root, classes=["x", "y"], label_map={2: 0, 1: 1, 0: 255})
    frames = mapped.frames("train", BOTH)
    assert [frames.label(i)[1, 1].item() for i in range(3)] == [0, 255, 1]
    assert mapped.remarks() == ("labels of huggingface: 2 -> x, 1 -> y, 2 values -> ignored (0, 255)",)


def read(frames, results):
    results.put([frames.load(i)["label"][1, 1].item() for i in range(len(frames))])


def test_each_process_opens_the_files_for_itself(root):
    frames = source(root).frames("train", BOTH)
    assert frames.load(0)["label"][1, 1] == 2
    copy = pickle.loads(pickle.dumps(frames))
    assert copy._opened is None
    assert copy.load(2)["label"][1, 1] == 1
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    worker = context.Process(target=read, args=(frames, results))
    worker.start()
    assert results.get(timeout=30) == [2, 0, 1]
    worker.join()
    # As in a worker: what another process opened is opened again.
    opened = frames._opened[1]
    frames._opened = (frames._opened[0] + 1, opened)
    frames.load(0)
    assert frames._opened[0] == os.getpid()
    assert frames._opened[1] is not opened


def test_counts_are_kept_until_the_files_or_the_meaning_change(root):
    info = source(root).info
    frames = source(root).frames("train", BOTH)
    assert class_counts(frames, info).pixels.tolist() == [23, 23, 23]
    assert frames.fingerprint() == source(root).frames("train", BOTH).fingerprint()
    other = source(root, label_map={0: 1, 1: 0, 2: 2}).frames("train", BOTH)
    assert other.fingerprint() != frames.fingerprint()


def saved(tmp_path, rows):
    datasets.DatasetDict(train=made(rows)).save_to_disk(str(tmp_path / "set"))
    return str(tmp_path / "set")


def test_changed_parquet_is_converted_anew(tmp_path):
    path = tmp_path / "set" / "train.parquet"
    path.parent.mkdir()
    for n, seconds in ((1, 1000), (2, 2000)):
        made([row(n)]).to_parquet(str(path))
        os.utime(path, (seconds, seconds))
        assert source(str(path.parent)).frames("train", BOTH).label(0)[1, 1] == n


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pic": b"no picture"}, r"set, split train, row 1, column pic: not a readable"),
        ({"pic": b""}, r"row 1, column pic: not a readable .* \(it is empty\)"),
        ({"pic": None}, r"row 1, column pic: there is no image in it"),
        ({"mask": None}, r"row 1, column mask: there is no image in it"),
        ({"mask": encoded(np.full((4, 6), 7))}, r"row 1, column mask: value 7 \(24 pixels\) is no class"),
        (
            {"mask": encoded(np.zeros((5, 6)))},
            r"row 1, column mask measures 6x5 pixels but .* column pic 6x4",
        ),
        ({"mask": encoded(np.zeros((4, 6)), "JPEG")}, r"row 1, column mask: JPEG changes numbers"),
        (
            {"pic": {"bytes": None, "path": "gone.png"}},
            r"row 1, column pic: its file gone\.png cannot be read",
        ),
        (
            {"pic": {"bytes": None, "path": "https://host/a.png"}},
            r"its file https://host/a\.png cannot be read",
        ),
    ],
)
def test_a_fault_names_folder_split_and_row(tmp_path, change, said):
    # As it is: saving by the package would look for the file of a path.
    table = made([row(0), row(1, **change)]).data.table
    (tmp_path / "set").mkdir()
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "set" / "train.parquet")
    frames = source(str(tmp_path / "set")).frames("train", BOTH)
    frames.load(0)
    with pytest.raises(DataError, match=said):
        frames.load(1)


def test_faults_of_the_whole(tmp_path):
    root = saved(tmp_path, [row(0), row(1, id="frame0")])
    for options, split, said in (
        ({}, "val", r"set: no split 'val'; it must be saved with save_to_disk"),
        ({"label": "msk"}, "train", r"set, split train: no column 'msk'; its columns are pic, mask, id"),
        ({"label": "id"}, "train", r"column 'id' holds .*; it must hold images"),
        ({"names": "nam"}, "train", r"no column 'nam'; .*data\.source\.names"),
        ({"names": "id"}, "train", r"row 1: the name 'frame0' is there already \(row 0\)"),
    ):
        with pytest.raises(DataError, match=said):
            source(root, **options).frames(split, BOTH)
    made([row(0)]).save_to_disk(str(tmp_path / "single"))
    with pytest.raises(DataError, match="a dataset without splits; save a DatasetDict"):
        source(str(tmp_path / "single")).frames("train", BOTH)
    with pytest.raises(DataError, match=r"data\.source\.root must be the folder"):
        source(str(tmp_path / "none")).frames("train", BOTH)


def test_damaged_files(tmp_path):
    root = saved(tmp_path, [row(0)])
    (tmp_path / "set/train/state.json").write_text("{")
    with pytest.raises(DataError, match="set: split train cannot be read"):
        source(root).frames("train", BOTH)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="other: split train cannot be read"):
        source(str(tmp_path / "other")).frames("train", BOTH)


def test_the_environment_is_as_before_and_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    root = saved(tmp_path, [row(0)])
    source(root).frames("train", BOTH).load(0)
    assert "HF_DATASETS_OFFLINE" not in os.environ
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'hardpix\[hf\]'"):
        source(root).frames("train", BOTH)


def test_masks_as_arrays_of_numbers(tmp_path):
    picture = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    numbers = np.arange(24).reshape(4, 6) % 3
    for name, feature in (
        ("array", datasets.Array2D((4, 6), "uint8")),
        ("lists", datasets.Sequence(datasets.Sequence(datasets.Value("int64")))),
    ):
        features = datasets.Features({"image": datasets.Image(), "label": feature})
        wrong = numbers.copy()
        wrong[0, 0] = 200
        rows = {"image": [picture] * 2, "label": [numbers.tolist(), wrong.tolist()]}
        made = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})
        made.save_to_disk(str(tmp_path / name))
        frames = HuggingFace(str(tmp_path / name), classes=["a", "b", "c"]).frames("train", BOTH)
        np.testing.assert_array_equal(frames.load(0)["label"], numbers)
        with pytest.raises(DataError, match=r"row 1, column label: value 200 \(1 pixels\) is no class"):
            frames.load(1)
    rows = {"image": [picture], "label": [[[1.5, 0.0]]]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(
        str(tmp_path / "f/train")
    )
    with pytest.raises(DataError, match="must be whole ones from 0 to 65535"):
        HuggingFace(str(tmp_path / "f"), classes=["a"]).frames("train", BOTH).load(0)
