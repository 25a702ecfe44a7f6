"""CIFAR-100: pickles as Python 2 wrote them, the binary release, hostile pickles, and training's input."""

import pickle
import struct

import numpy as np
import pytest
import torch

from hardpix.data import CIFAR100
from hardpix.data.prepare import find_recipe
from hardpix.data.prepare.recipe import Work
from hardpix.data.sets.cifar100 import read_array_pickle
from hardpix.data.statistics import LabelFrames, class_counts
from hardpix.types import ConfigError, DataError

BOTH = frozenset({"image", "label"})
IMAGE = frozenset({"image"})


def string(text: bytes) -> bytes:
    """A ``str`` of Python 2 in a pickle of protocol 2."""
    if len(text) < 256:
        return b"U" + bytes([len(text)]) + text
    return b"T" + struct.pack("<i", len(text)) + text


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def array(values: np.ndarray, *, fortran=False, kind=b"u1", byte_order=b"|") -> bytes:
    """What Python 2's numpy wrote of an array."""
    shape = b"".join(map(number, values.shape)) + (b"\x85" if values.ndim == 1 else b"\x86")
    dtype = b"cnumpy\ndtype\n" + string(kind) + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + string(byte_order) + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    made = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + number(0)
        + b"\x85"
        + string(b"b")
        + b"\x87R"
    )
    data = string(values.tobytes("F" if fortran else "C"))
    flag = b"\x88" if fortran else b"\x89"
    return made + b"(" + number(1) + shape + dtype + flag + data + b"tb"


def listed(entries: list[bytes]) -> bytes:
    return b"](" + b"".join(entries) + b"e"


def release(values, fine, names, **other) -> bytes:
    """train or test of cifar-100-python; ``other``: entries that differ, b"" for one that is not there."""
    items = {
        b"filenames": listed([string(n) for n in names]),
        b"batch_label": string(b"training batch 1 of 1"),
        b"fine_labels": listed([number(f) for f in fine]),
        b"coarse_labels": listed([number(0) for _ in fine]),
        b"data": array(values),
    } | {key.encode(): value for key, value in other.items()}
    return b"\x80\x02}(" + b"".join(string(k) + v for k, v in items.items() if v) + b"u."


def images(count, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (count, 3072)).astype(np.uint8)


def meta() -> bytes:
    names = [string(name.encode()) for name in CIFAR100.info.classes]
    return (
        b"\x80\x02}("
        + string(b"fine_label_names")
        + listed(names)
        + string(b"coarse_label_names")
        + listed([string(b"fish")])
        + b"u."
    )


@pytest.fixture
def python(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = [b"bos_taurus_s_000507.png", b"stegosaurus_s_000125.png", b"bos_taurus_s_000507.png"]
    (folder / "train").write_bytes(release(images(3), [19, 99, 0], names))
    (folder / "test").write_bytes(release(images(1, seed=1), [49], [b"volcano_s_000012.png"]))
    (folder / "meta").write_bytes(meta())
    return tmp_path


@pytest.fixture
def binary(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    rows = [bytes([7, fine]) + row.tobytes() for fine, row in zip([19, 99, 0], images(3), strict=True)]
    (folder / "train.bin").write_bytes(b"".join(rows))
    (folder / "test.bin").write_bytes(bytes([10, 49]) + images(1, seed=1).tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(CIFAR100.info.classes) + "\n\n")
    return tmp_path


def check(root):
    source = CIFAR100(root)
    train = source.frames("train", BOTH)
    assert len(train) == 3
    for index, fine in enumerate([19, 99, 0]):
        sample = train.load(index)
        # Planes of red, green and blue, rows from the top: pixel (row 2, column 5) of green.
        assert sample["image"][1, 2, 5] == int(images(3)[index, 1024 + 2 * 32 + 5])
        assert sample["image"].shape == (3, 32, 32)
        assert sample["image"].dtype == sample["label"].dtype == torch.uint8
        assert (sample["label"] == fine).all()
        assert sample["label"].shape == (32, 32)
        assert torch.equal(train.label(index), sample["label"])
    for split in ("val", "test"):
        frames = source.frames(split, BOTH)
        assert [int(frames.load(i)["label"][0, 0]) for i in range(len(frames))] == [49]
        np.testing.assert_array_equal(frames.load(0)["image"].flatten(), images(1, seed=1)[0])
    assert "label" not in source.frames("train", IMAGE).load(0)
    return [train.name(i) for i in range(3)]


def test_the_pickles_of_python_2(python):
    names = check(python)
    assert names == ["bos_taurus_s_000507__00000", "stegosaurus_s_000125", "bos_taurus_s_000507__00002"]
    assert check(python / "cifar-100-python") == names


def test_the_binary_release(binary):
    assert check(binary) == ["train_00000", "train_00001", "train_00002"]


def test_pixels_are_counted_and_kept_on_disk(python):
    frames = CIFAR100(python).frames("train", frozenset({"label"}))
    assert isinstance(frames, LabelFrames)
    counts = class_counts(frames, CIFAR100.info)
    assert counts.pixels.nonzero().flatten().tolist() == [0, 19, 99]
    assert counts.pixels[19] == 1024
    before = frames.fingerprint()
    path = python / "cifar-100-python/train"
    path.write_bytes(path.read_bytes() + b" ")
    assert CIFAR100(python).frames("train", BOTH).fingerprint() != before
    assert CIFAR100(python).frames("test", BOTH).fingerprint() != before


def test_arrays_in_either_order_and_of_newer_numpy(tmp_path):
    values = images(3)
    path = tmp_path / "p"
    path.write_bytes(b"\x80\x02}(" + string(b"a") + array(values, fortran=True) + b"u.")
    np.testing.assert_array_equal(read_array_pickle(path)[b"a"], values)
    path.write_bytes(pickle.dumps({b"a": 1, b"b": [2]}, protocol=4))
    assert read_array_pickle(path) == {b"a": 1, b"b": [2]}


class Hostile:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_hostile_pickle_is_refused_and_not_run(python, tmp_path, protocol):
    import os

    trace = tmp_path / "trace"
    path = python / "cifar-100-python/train"
    path.write_bytes(pickle.dumps({"data": Hostile(os.mkdir, str(trace))}, protocol=protocol))
    with pytest.raises(
        DataError, match=r"train: not a pickle of arrays .* names \w+\.mkdir, which was not run"
    ):
        CIFAR100(python).frames("train", BOTH)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", ["builtins\neval", "numpy\nload", "numpy.core.multiarray\nfromfile", "copyreg\n_reconstructor"]
)
def test_names_beside_the_three_of_an_array_are_refused(tmp_path, name):
    path = tmp_path / "p"
    path.write_bytes(b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(DataError, match="which was not run"):
        read_array_pickle(path)


def test_damaged_pickles(python):
    path = python / "cifar-100-python/train"
    whole = path.read_bytes()
    good = images(3)
    names = [b"a.png", b"b.png", b"c.png"]
    short = array(good).replace(good.tobytes(), good.tobytes()[:-1])
    short = short.replace(struct.pack("<i", good.size), struct.pack("<i", good.size - 1))
    cases = {
        "not a pickle": whole[:-5000],
        "not of bytes": release(good, [1, 2, 3], names, data=array(good, kind=b"O8")),
        "does not have that many bytes": release(good, [1, 2, 3], names, data=short),
        "not of one number": release(good, [1, 2], names[:2]),
        "data, fine_labels and filenames": release(good, [1, 2, 3], names[:2]),
        "has no fine_labels": release(good, [1, 2, 3], names, fine_labels=b""),
        "has no filenames": release(good, [1, 2, 3], names, filenames=listed([number(1)] * 3)),
        r"image 1 is of class 100; classes are 0\.\.99": release(good, [1, 100, 3], names),
        "there is no image": release(good[:0], [], []).replace(b"](e", b"]"),
        "holds no dict": b"\x80\x02].",
        r"image 0 is of class -1": release(good, [-1, 2, 3], names),
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            CIFAR100(python).frames("train", BOTH)


def test_damaged_binary_files(binary):
    folder = binary / "cifar-100-binary"
    whole = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"9221 bytes are no whole images of 3074"):
        CIFAR100(binary).frames("train", BOTH)
    (folder / "train.bin").write_bytes(whole[:3074] + bytes([0, 100]) + whole[3076:])
    with pytest.raises(DataError, match="image 1 is of class 100"):
        CIFAR100(binary).frames("train", BOTH)
    (folder / "train.bin").write_bytes(b"")
    with pytest.raises(DataError, match="there is no image"):
        CIFAR100(binary).frames("train", BOTH)
    (folder / "fine_label_names.txt").write_text("apple\naquarium_fish\nbear\n")
    with pytest.raises(DataError, match=r"fine_label_names\.txt: its class 2 is not baby"):
        CIFAR100(binary).frames("test", BOTH)


def test_other_names_and_missing_files(python, tmp_path):
    path = python / "cifar-100-python/meta"
    path.write_bytes(meta().replace(b"baby", b"bear"))
    with pytest.raises(DataError, match="meta: its class 2 is not baby"):
        CIFAR100(python).frames("train", BOTH)
    path.unlink()
    assert len(CIFAR100(python).frames("train", BOTH)) == 3
    (python / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither cifar-100-python/test nor cifar-100-binary/test\.bin"):
        CIFAR100(python / "empty").frames("val", BOTH)
    with pytest.raises(DataError, match=r"no such folder; data\.source\.root"):
        CIFAR100(tmp_path / "no").frames("val", BOTH)


def test_the_classes_are_those_of_the_release():
    text = "\n".join(CIFAR100.info.classes)
    assert list(CIFAR100.info.classes) == sorted(CIFAR100.info.classes)
    assert [CIFAR100.info.classes[i] for i in (0, 19, 26, 29, 39, 49, 73, 99)] == [
        "apple", "cattle", "crab", "dinosaur", "keyboard", "mountain", "shark", "worm",
    ]  # fmt: skip
    assert len(set(text.split())) == 100


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_the_recipe_places_one_release(kind, request, tmp_path):
    root = request.getfixturevalue(kind)
    recipe = find_recipe("cifar100")()
    out = tmp_path / "out"
    for _ in range(2):
        recipe.convert(Work([root], out))
    check(out)
    assert recipe.wanted(f"cifar-100-{kind}/train" + (".bin" if kind == "binary" else ""))
    assert not recipe.wanted(f"cifar-100-{kind}/file.txt~")
    assert not recipe.wanted("train")
    with pytest.raises(
        DataError, match=r"it comes from cifar-100-python\.tar\.gz or cifar-100-binary\.tar\.gz"
    ):
        recipe.convert(Work([tmp_path / "no"], tmp_path / "out2"))


def test_training_sees_single_class_crops(python, tiny):
    """No crop is redrawn for having one class, and no image loses its label."""
    from hydra.utils import instantiate

    folder = python / "cifar-100-python"
    fine = [i % 5 for i in range(16)]
    (folder / "train").write_bytes(release(images(16), fine, [b"n%d.png" % i for i in range(16)]))
    given = (
        "data=cifar100",
        f"data.source.root={python}",
        "data.batch_size=4",
        "data.train_transform.crop=[32,32]",
    )
    config = tiny(*given)
    module = instantiate(config.data, _convert_="object")
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert batch["image"].shape == (4, 3, 32, 32)
    classes = [label.unique().tolist() for label in batch["label"]]
    assert all(len(found) == 1 for found in classes)
    # An image and its label stay together.
    for name, (found,) in zip(batch["name"], classes, strict=True):
        assert fine[int(name.removeprefix("n"))] == found


def test_a_misspelt_split_is_not_the_test_pictures(python):
    with pytest.raises(ConfigError, match="cifar100 has no split 'trian'; there are train, val, test"):
        CIFAR100(str(python)).frames("trian", frozenset({"image"}))
