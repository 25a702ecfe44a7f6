"""The look over a data set: each fault has its finding, a clean set has none, and the counts are a slow loop's."""

import os
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix.data import CamVid, Folder, NYUv2, Packed, SyntheticRooms, check_workers, pack
from hardpix.data.check import check
from hardpix.data.check_frames import depth_facts, depth_quantile, image_facts
from hardpix.data.check_workers import plan_splits
from hardpix.data.source import Source
from hardpix.types import DataError, DatasetInfo

SPLITS = ("train", "val", "test")
H, W = 12, 16


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path):
    """Three splits of three frames without a fault; every class in every label, depth in millimetres."""
    rng = np.random.default_rng(0)
    for split in SPLITS:
        for name in ("a", "b", "c"):
            save(tmp_path / split / "images" / f"{name}.png", rng.integers(0, 256, (H, W, 3), np.uint8))
            label = rng.integers(0, 4, (H, W), np.uint8)
            label[label == 3] = 255
            save(tmp_path / split / "labels" / f"{name}.png", label)
            depth = rng.integers(500, 5000, (H, W), np.uint16)
            depth[0, :5] = 0
            save(tmp_path / split / "depths" / f"{name}.png", depth)
    return tmp_path


def source(root, **options):
    with_depth = {"depths": "{split}/depths", "depth_scale": 1000, "depth_max": 10.0}
    return Folder(str(root), classes=["wall", "floor", "door"], **(with_depth | options))


def found(root, splits=SPLITS, **options):
    """``{(code, split): finding}``."""
    checkup = check(source(root, **options), splits)
    return {(f.code, f.split): f for f in checkup.findings}


def test_a_clean_data_set_has_no_findings(root):
    checkup = check(source(root), SPLITS)
    assert checkup.findings == []
    assert [s.looked for s in checkup.sums] == [3, 3, 3]
    assert checkup.errors == 0


def test_counts_are_those_of_a_slow_loop(root):
    sums = check(source(root), ["val"]).sums[0]
    pixels, images, void = [0, 0, 0], [0, 0, 0], 0
    values, depths = [], []
    for name in "abc":
        label = np.asarray(Image.open(root / "val/labels" / f"{name}.png"))
        depth = np.asarray(Image.open(root / "val/depths" / f"{name}.png"))
        values.append(np.asarray(Image.open(root / "val/images" / f"{name}.png")).reshape(-1, 3))
        seen = set()
        for y in range(H):
            for x in range(W):
                if label[y, x] == 255:
                    void += 1
                else:
                    pixels[label[y, x]] += 1
                    seen.add(int(label[y, x]))
                if depth[y, x]:
                    depths.append(depth[y, x] / 1000)
        for index in seen:
            images[index] += 1
    assert sums.class_pixels.tolist() == pixels
    assert sums.class_images.tolist() == images
    assert sums.void == void
    assert sums.void_share == pytest.approx(void / (3 * H * W))
    np.testing.assert_allclose(sums.mean, np.concatenate(values).mean(axis=0))
    np.testing.assert_allclose(sums.std, np.concatenate(values).std(axis=0))
    assert sums.depth_valid == len(depths) == 3 * (H * W - 5)
    assert sums.depth_least == pytest.approx(min(depths))
    assert sums.depth_largest == pytest.approx(max(depths))
    assert dict(sums.sizes) == {(H, W): 3}


def test_depth_quantiles_to_a_percent():
    rng = np.random.default_rng(1)
    depth = rng.uniform(0.5, 8, (400, 400)).astype(np.float32)
    facts = depth_facts(depth, np.ones(depth.shape, bool), 7.0, "x")
    for share in (0.01, 0.25, 0.5, 0.95):
        exact = np.quantile(depth[::4, ::4], share)
        assert depth_quantile(facts.bins, share) == pytest.approx(exact, rel=0.011)
    assert facts.beyond == int((depth > 7).sum())


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def turned(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def noise(height=H, width=W, seed=9):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def as_jpeg(root):
    (root / "train/images/b.png").unlink()
    return save(root / "train/images/b.jpg", noise(64, 64))


def alpha_label(root):
    grey = Image.open(root / "train/labels/b.png")
    grey.putalpha(254)
    grey.save(root / "train/labels/b.png")


def label_with(value, dtype=np.uint8):
    def write(root):
        label = np.zeros((H, W), dtype)
        label[2, 3:5] = value
        save(root / "train/labels/b.png", label)

    return write


# What is done to frame b of train, the code it must get, and what its sentence must say.
FAULTS = {
    "image gone": (lambda r: (r / "train/images/b.png").unlink(), None, None),
    "label gone": (lambda r: (r / "train/labels/b.png").unlink(), "label-missing", r"labels/b\.png: no such"),
    "depth gone": (lambda r: (r / "train/depths/b.png").unlink(), "depth-missing", r"depths/b\.png: no such"),
    "label jpeg": (
        lambda r: (r / "train/labels/b.png").rename(r / "train/labels/b.JPG"),
        "lossy",
        r"labels/b\.JPG: JPEG changes numbers",
    ),
    "image empty": (
        lambda r: (r / "train/images/b.png").write_bytes(b""),
        "image-unreadable",
        r"images/b\.png: .*empty",
    ),
    "label empty": (
        lambda r: (r / "train/labels/b.png").write_bytes(b""),
        "label-unreadable",
        r"labels/b\.png: .*empty",
    ),
    "depth empty": (
        lambda r: (r / "train/depths/b.png").write_bytes(b""),
        "depth-unreadable",
        r"depths/b\.png: .*empty",
    ),
    "truncated png": (lambda r: truncate(r / "train/images/b.png"), "image-unreadable", r"images/b\.png"),
    "truncated jpeg": (lambda r: truncate(as_jpeg(r)), "image-unreadable", r"images/b\.jpg"),
    "no image at all": (
        lambda r: (r / "train/labels/b.png").write_text("label"),
        "label-unreadable",
        r"labels/b\.png",
    ),
    "bomb": (
        lambda r: (r / "train/images/b.png").write_bytes(png_header(30000, 30000)),
        "image-unreadable",
        r"images/b\.png: its header claims 900000000 pixels",
    ),
    "label bomb": (
        lambda r: (r / "train/labels/b.png").write_bytes(png_header(30000, 30000)),
        "label-unreadable",
        r"labels/b\.png: its header claims",
    ),
    "wrong-size label": (
        lambda r: save(r / "train/labels/b.png", np.zeros((W, H), np.uint8)),
        "size-mismatch",
        r"labels/b\.png measures 12x16",
    ),
    "wrong-size depth": (
        lambda r: save(r / "train/depths/b.png", np.ones((H, W + 1), np.uint16)),
        "size-mismatch",
        r"depths/b\.png measures 17x12",
    ),
    "label value": (label_with(7), "label-values", r"value 7 \(2 pixels\) is no class"),
    "16-bit label": (label_with(300, np.uint16), "label-values", r"value 300 \(2 pixels\)"),
    "label with alpha": (alpha_label, "label-values", r"labels/b\.png: .*LA"),
    "coloured label": (
        lambda r: save(r / "train/labels/b.png", noise()),
        "label-values",
        r"labels/b\.png: .*RGB",
    ),
    "coloured depth": (
        lambda r: save(r / "train/depths/b.png", noise()),
        "depth-values",
        r"depths/b\.png: depth must be",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_frame_gets_its_sentence_and_costs_nothing_else(root, fault):
    whole = check(source(root), ["train"]).sums[0]
    lost = np.asarray(Image.open(root / "train/labels/b.png"))
    write, code, sentence = FAULTS[fault]
    write(root)
    checkup = check(source(root), SPLITS)
    sums = checkup.sums[0]
    if code is None:  # without its image a folder has no frame, but files that belong to none
        (finding,) = checkup.findings
        assert (finding.code, finding.level, finding.count) == ("label-stray", "note", 2)
        assert {hit.name for hit in finding.hits} == {"b.png"}
    else:
        (finding,) = checkup.findings
        assert (finding.code, finding.level, finding.split, finding.count) == (code, "error", "train", 1)
        assert [hit.name for hit in finding.hits] == ["b"]
        assert re.search(sentence, finding.hits[0].sentence), finding.hits[0].sentence
        assert "1 of 3 frames" in finding.what
        assert (sums.looked, sums.broken) == (3, 1)
    assert sums.class_pixels.tolist() == [int(whole.class_pixels[i] - (lost == i).sum()) for i in range(3)]
    assert len(sums.digests) == 2
    assert checkup.sums[1].looked == 3


def test_every_fault_of_one_frame_is_told(root):
    truncate(root / "val/images/a.png")
    label = np.full((H, W), 9, np.uint8)
    save(root / "val/labels/a.png", label)
    (root / "val/depths/b.png").write_bytes(b"")
    save(root / "val/labels/b.png", label)
    codes = found(root)
    assert set(codes) == {
        ("image-unreadable", "val"),
        ("label-values", "val"),
        ("depth-unreadable", "val"),
    }
    assert codes["label-values", "val"].count == 2


@pytest.mark.parametrize(
    ("write", "code"),
    [
        (lambda path: save(path, np.dstack([noise(), np.full((H, W), 9, np.uint8)])), "image-transparent"),
        (lambda path: save(path, noise()[..., 0]), "image-grey"),
        (lambda path: save(path, np.full((H, W, 3), (9, 200, 90), np.uint8)), "image-constant"),
        (lambda path: save(path, noise(), exif=turned(3)), "image-turned"),
    ],
)  # fmt: skip
def test_images_that_are_read_but_noted(root, write, code):
    write(root / "train/images/b.png")
    codes = found(root)
    assert set(codes) == {(code, "train")}
    assert codes[code, "train"].count == 1
    assert codes[code, "train"].level != "error"


def test_images_of_more_than_8_bits_are_faults_without_a_range_and_noted_with_one(root):
    for path in root.glob("*/images/*.png"):
        save(path, noise()[..., 0].astype(np.uint16) * 250)
        noise_of = np.random.default_rng(len(str(path)) + ord(path.stem) + ord(path.parts[-3][1]))
        save(path, noise_of.integers(0, 4096, (H, W), np.uint16))
    codes = found(root)
    assert {code for code, _ in codes} == {"frame-unreadable"}
    assert "data.source.image_range=[0,4095]" in codes["frame-unreadable", "train"].hits[0].sentence
    assert {code for code, _ in found(root, image_range=[0, 4095])} == {"image-deep", "image-grey"}


def test_an_orientation_that_turns_the_image_off_its_label_says_so(root):
    save(root / "train/images/b.png", noise(), exif=turned(6))
    (finding,) = found(root).values()
    assert finding.code == "size-mismatch"
    assert "EXIF" in finding.hits[0].sentence


def test_palette_and_16_bit_labels_are_counted(root):
    label = np.asarray(Image.open(root / "train/labels/b.png"))
    palette = Image.fromarray(label).convert("P")
    palette.putdata(label.ravel().tolist())
    palette.save(root / "train/labels/b.png")
    save(root / "train/labels/c.png", np.asarray(Image.open(root / "train/labels/c.png")).astype(np.uint16))
    assert found(root) == {}


def test_void_labels(root):
    save(root / "train/labels/b.png", np.full((H, W), 255, np.uint8))
    labels = {name: np.array(Image.open(root / f"train/labels/{name}.png")) % 3 for name in "ac"}
    for name, label in labels.items():
        save(root / f"train/labels/{name}.png", label)
    assert set(found(root)) == {("label-void", "train")}
    for name, label in labels.items():
        label[: H // 2] = 255
        save(root / f"train/labels/{name}.png", label)
    assert set(found(root)) == {("label-void", "train"), ("void-mostly", "train")}


def without_class(root, index, splits):
    for split in splits:
        for path in (root / split / "labels").iterdir():
            label = np.array(Image.open(path))
            label[label == index] = 0
            save(path, label)


def test_classes_that_are_never_trained_or_nowhere(root):
    without_class(root, 2, ["train", "val"])
    codes = found(root)
    assert set(codes) == {("class-only-in-evaluation", "test")}
    assert "door (in 3 frames)" in codes["class-only-in-evaluation", "test"].what
    without_class(root, 2, ["test"])
    codes = found(root)
    assert set(codes) == {("class-never", None)}
    assert "door" in codes["class-never", None].what


def copy(root, one, other):
    (root / other).write_bytes((root / one).read_bytes())


def test_copies_are_found_by_their_pixels(root):
    image = np.asarray(Image.open(root / "train/images/a.png"))
    save(root / "test/images/b.png", image, compress_level=0)  # other bytes, the same pixels
    copy(root, "val/images/a.png", "test/images/c.png")
    copy(root, "val/images/b.png", "val/images/c.png")
    codes = found(root)
    assert set(codes) == {("leak", "test"), ("twice-in-evaluation", "test"), ("twice", "val")}
    assert codes["leak", "test"].level == "error"
    assert codes["leak", "test"].hits[0].sentence == "b: same pixels as a of train"
    assert codes["twice", "val"].hits[0].sentence == "c: same pixels as b of val"
    one_pixel = image.copy()
    one_pixel[3, 3, 1] ^= 1
    save(root / "test/images/b.png", one_pixel)
    assert ("leak", "test") not in found(root)


def test_pixels_in_another_shape_are_no_copy():
    pixels = noise()
    assert image_facts(pixels).digest != image_facts(pixels.reshape(W, H, 3)).digest


def test_depth_findings(root):
    save(root / "train/depths/a.png", np.zeros((H, W), np.uint16))
    save(root / "train/depths/b.png", np.full((H, W), 800, np.uint16))
    deep = np.asarray(Image.open(root / "train/depths/c.png")).copy()
    deep[5, :3] = 10001
    save(root / "train/depths/c.png", deep)
    codes = found(root)
    assert set(codes) == {("depth-empty", "train"), ("depth-constant", "train"), ("depth-beyond", "train")}
    assert "3 pixels, up to 10 m" in codes["depth-beyond", "train"].hits[0].sentence
    assert "{" not in codes["depth-beyond", "train"].what
    assert {key for key in found(root, depth_max=None) if key[0] == "depth-unbounded"} == {
        ("depth-unbounded", split) for split in SPLITS
    }


def test_sizes_and_statistics(root):
    for kind, array in {
        "images": noise(8, 20) // 32,
        "labels": np.resize([0, 1, 2], (8, 20)).astype(np.uint8),
        "depths": np.arange(1, 161, dtype=np.uint16).reshape(8, 20) * 9,
    }.items():
        save(root / f"val/{kind}/b.png", array)
    codes = found(root)
    assert set(codes) == {("image-sizes", "val")}
    assert "2 different sizes, from 20x8 to 16x12" in codes["image-sizes", "val"].what
    for split in SPLITS:
        for path in (root / split / "images").iterdir():
            save(path, np.asarray(Image.open(path)) // 16)
    assert {code for code, _ in found(root)} >= {"image-statistics"}


def test_splits_that_are_not_there(root):
    codes = found(root, ["train", "val", "extra"])
    assert set(codes) == {("split-closed", "extra")}
    assert "extra/images: no such folder" in codes["split-closed", "extra"].what
    (root / "empty/images").mkdir(parents=True)
    assert set(found(root, ["train", "empty"])) == {("split-closed", "empty")}


def test_a_split_of_the_same_files_is_one_note_and_not_a_leak(root):
    for kind in ("images", "labels", "depths"):
        os.rename(root / "test" / kind, root / kind)
    shared = source(root, images="{split}/images", depths="{split}/depths")
    folder = shared._folder
    shared._folder = lambda kind, split: root / f"{kind}s" if split != "train" else folder(kind, split)
    checkup = check(shared, SPLITS)
    assert [(f.code, f.split) for f in checkup.findings] == [("same-split", "test")]
    assert [s.split for s in checkup.sums] == ["train", "val"]
    assert checkup.plans[2].same_as == "val"


def test_unlabelled_frames(root):
    plain = source(root)
    files = plain.files
    plain.files = lambda split: [
        replace(f, label=None) if split == "test" or f.name == "b" else f for f in files(split)
    ]
    codes = {(f.code, f.split): f for f in check(plain, SPLITS).findings}
    assert codes["unlabelled", "train"].count == 1
    assert codes["all-unlabelled", "test"].level == "warning"
    # their labels lie there all the same, as files of no frame
    assert set(codes) == {("unlabelled", "train"), ("unlabelled", "val"), ("all-unlabelled", "test")} | {
        ("label-stray", "train"), ("label-stray", "val"),
    }  # fmt: skip


def test_names_that_are_not_unique(root):
    (root / "train/images/x").mkdir()
    os.rename(root / "train/images/b.png", root / "train/images/x/b.png")
    twice = source(root)
    files = twice.files
    twice.files = lambda split: [replace(f, name="same") if split == "val" else f for f in files(split)]
    codes = {(f.code, f.split): f for f in check(twice, ["val"]).findings}
    assert set(codes) == {("name-twice", "val")}
    assert codes["name-twice", "val"].count == 3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("500 0 14 0 500 6 0 0 1", "camera-partly"),
        ("500 0 8 0 500 14 0 0 1", "camera-outside"),
        ("500 0 8", "camera-unreadable"),
    ],
)
def test_cameras(root, text, code):
    (root / "k.txt").write_text(text)
    with_camera = source(root)
    files = with_camera.files
    with_camera.files = lambda split: [
        replace(f, camera=root / "k.txt") if code != "camera-partly" or f.name == "b" else f
        for f in files(split)
    ]
    checkup = check(with_camera, ["val"])
    assert {f.code for f in checkup.findings} == {code}
    if code == "camera-partly":
        assert checkup.findings[0].count == 1
        assert list(checkup.sums[0].cameras) == [(500, 500, 14, 6)]


class Arrays(Source):
    """A source without files: frame 1 cannot be read, frame 2 raises what no source should."""

    info = DatasetInfo("arrays", ("a", "b"), ((1, 2, 3), (4, 5, 6)), depth_max=10.0)

    def __init__(self, provides=("image", "label"), faults=True):
        self.info = DatasetInfo("arrays", ("a", "b"), ((1, 2, 3), (4, 5, 6)), provides=frozenset(provides))
        self.faults = faults

    def frames(self, split, keys):
        if split == "gone":
            raise DataError("arrays: there is no split gone.")
        return ArrayFrames(split, keys, self.faults)


class ArrayFrames:
    def __init__(self, split, keys, faults):
        self.split, self.keys, self.faults = split, keys, faults

    def __len__(self):
        return 0 if self.split == "empty" else 5

    def name(self, index):
        return f"{self.split}{index}"

    def load(self, index):
        if self.faults and index == 1:
            raise DataError("arrays: record 1 is damaged")
        if self.faults and index == 2:
            raise ZeroDivisionError("by zero")
        seed = index + 100 * len(self.split)
        sample = {"image": torch.from_numpy(noise(seed=seed)).permute(2, 0, 1), "name": self.name(index)}
        if "label" in self.keys:
            label = torch.arange(H * W).reshape(H, W) % 2
            label[0, 0] = 5 if self.faults and index == 3 else 255
            sample["label"] = label
            if self.faults and index == 4:
                sample["label"] = label[1:]
        return sample


def test_sources_that_are_no_files(root):
    checkup = check(Arrays(), ["train", "empty", "gone"])
    codes = {(f.code, f.split): f for f in checkup.findings}
    sentences = [hit.sentence for hit in codes["frame-unreadable", "train"].hits]
    assert sentences == ["arrays: record 1 is damaged", "train2: ZeroDivisionError: by zero"]
    assert "holds 5 (1 pixels)" in codes["label-values", "train"].hits[0].sentence
    assert codes["size-mismatch", "train"].hits[0].name == "train4"
    assert codes["split-closed", "gone"].what == "The split cannot be opened: arrays: there is no split gone."
    assert ("split-empty", "empty") in codes
    assert len(codes) == 5
    assert checkup.sums[0].class_pixels.tolist() == [H * W // 2 - 1, H * W // 2]


def test_a_data_set_without_labels_is_looked_at_for_what_it_has():
    checkup = check(Arrays(["image"], faults=False), ["train", "val2"])
    assert checkup.findings == []
    assert all(s.labelled == 0 and s.pixels == 5 * H * W for s in checkup.sums)
    assert "label" not in checkup.to_json()["splits"]["train"]


def test_synthetic_and_packed_sets(root, tmp_path):
    sizes = {"height": 32, "width": 48, "train_frames": 3, "val_frames": 2, "test_frames": 2}
    rooms = SyntheticRooms(seed=0, difficulty=0.5, cache_dir=tmp_path / "rooms", **sizes)
    plain = source(root)
    pack(plain, tmp_path / "packed", size=None, splits=SPLITS)
    for one in (rooms, Packed(str(tmp_path / "packed"))):
        checkup = check(one, SPLITS)
        assert checkup.errors == 0
        assert all(s.looked == s.frames and s.broken == 0 for s in checkup.sums)
    packed, files = check(Packed(str(tmp_path / "packed")), SPLITS), check(plain, SPLITS)
    for one, other in zip(packed.sums, files.sums, strict=True):
        assert one.digests == other.digests
        assert one.class_pixels.tolist() == other.class_pixels.tolist()
        assert one.depth_valid == other.depth_valid


def test_equal_splits_of_a_source_without_files_are_one_note(root, tmp_path):
    for kind in ("images", "labels", "depths"):
        for name in "abc":
            copy(root, f"test/{kind}/{name}.png", f"val/{kind}/{name}.png")
    pack(source(root), tmp_path / "packed", size=None, splits=SPLITS)
    checkup = check(Packed(str(tmp_path / "packed")), SPLITS)
    assert [(f.code, f.split) for f in checkup.findings] == [("same-split", "test")]


def test_a_limit_spreads_over_the_split_and_is_told(root):
    checkup = check(source(root), ["val"], limit=2)
    assert sorted(checkup.sums[0].digests) == [0, 1]
    assert [(f.code, f.count) for f in checkup.findings] == [("limited", 2)]
    assert "2 of 3 frames" in checkup.findings[0].what
    (root / "val/labels/c.png").unlink()
    assert {f.code for f in check(source(root), ["val"], limit=1).findings} == {"limited", "label-missing"}


# Several processes


class Deadly(Arrays):
    def frames(self, split, keys):
        return DeadlyFrames(split, keys, False)


class DeadlyFrames(ArrayFrames):
    def __len__(self):
        return 20

    def load(self, index):
        if index == 11:
            os._exit(9)
        return super().load(index)


@pytest.mark.slow
def test_processes_find_what_one_finds(root, monkeypatch):
    truncate(root / "val/images/a.png")
    alone = check(source(root), SPLITS).to_json()
    monkeypatch.setattr(check_workers, "FRAMES_WITHOUT_POOL", 1)
    monkeypatch.setattr(check_workers, "CHUNK", 2)
    assert check(source(root), SPLITS, workers=2).to_json() == alone


@pytest.mark.slow
def test_a_process_that_dies_costs_its_frame_alone(monkeypatch):
    monkeypatch.setattr(check_workers, "FRAMES_WITHOUT_POOL", 1)
    monkeypatch.setattr(check_workers, "CHUNK", 4)
    checkup = check(Deadly(), ["train"], workers=2)
    (finding,) = checkup.findings
    assert (finding.code, finding.count) == ("worker-died", 1)
    assert finding.hits[0].name == "train11"
    assert checkup.sums[0].looked == 20
    assert sorted(checkup.sums[0].digests) == [i for i in range(20) if i != 11]


def test_a_source_that_does_not_pickle_is_looked_at_here(monkeypatch):
    monkeypatch.setattr(check_workers, "FRAMES_WITHOUT_POOL", 1)
    stubborn = Arrays(faults=False)
    stubborn.lock = lambda: None
    assert check(stubborn, ["train"], workers=2).sums[0].looked == 5


# Real frames


@pytest.mark.slow
@pytest.mark.real
def test_real_camvid_and_nyuv2(real_data):
    camvid = check(CamVid(str(real_data / "CamVid")), SPLITS)
    assert [f.code for f in camvid.findings if f.code != "remark"] == []
    assert [s.looked for s in camvid.sums] == [105, 30, 42]
    nyu = check(NYUv2(str(real_data / "nyudv2"), void_40_in_train="ignore"), SPLITS, limit=40)
    codes = {(f.code, f.split) for f in nyu.findings if f.code != "remark"}
    assert ("same-split", "test") in codes
    assert ("class-only-in-evaluation", "val") in codes
    assert not {code for code, _ in codes} & {"leak", "twice", "label-stray"}
    assert nyu.errors == 0


def test_plans_read_no_pixel(root):
    for path in Path(root).rglob("*.png"):
        path.write_bytes(b"")
    assert [len(plan) for plan in plan_splits(source(root), SPLITS)] == [3, 3, 3]
