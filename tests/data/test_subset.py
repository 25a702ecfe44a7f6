"""Labelled subsets: which frames have labels, and what a semi-supervised epoch shows."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn

from hardpix.data import Cityscapes, DataModule, TestTransform, TrainTransform
from hardpix.data.sampling import (
    Chosen,
    ChosenLabels,
    LabeledSplit,
    SemiSampler,
    choose_labeled,
    chosen,
    listed,
)
from hardpix.types import ConfigError, DataError, DatasetInfo

INFO = DatasetInfo(name="tiny", classes=("a", "b", "c"), palette=((1, 1, 1), (2, 2, 2), (3, 3, 3)))
SIZES = {"train": 11, "val": 5, "test": 4}
CITY = [f"{city}_{n:06d}_000019" for city in ("aachen", "bochum", "ulm") for n in range(4)]
SEMI = frozenset({"image", "label", "unlabeled"})


def written(tmp_path, *lines):
    path = tmp_path / "labeled.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def official(name):
    """A line of U2PL's lists."""
    city = name.split("_")[0]
    return (
        f"leftImg8bit/train/{city}/{name}_leftImg8bit.png gtFine/train/{city}/{name}_gtFine_labelTrainIds.png"
    )


class TinyFrames:
    def __init__(self, split):
        self.split = split

    def __len__(self):
        return SIZES[self.split]

    def name(self, index):
        return f"{self.split}{index}"

    def load(self, index):
        rng = np.random.default_rng([index, len(self.split)])
        label = rng.integers(0, 3, (12, 16), dtype=np.uint8)
        label[0] = 255
        image = torch.from_numpy(rng.integers(0, 256, (3, 12, 16), dtype=np.uint8))
        return {"image": image, "label": torch.from_numpy(label), "name": self.name(index)}


class TinySource:
    info = INFO

    def frames(self, split, keys):
        return TinyFrames(split)

    def remarks(self):
        return ()


def crops(size=(10, 14), **changes):
    return TrainTransform(
        **{
            "crop": size, "base_size": None, "ratio": (0.5, 2.0), "cat_max_ratio": 0.75, "hflip": 0.5,
            "photometric": None, "scale_with_zoom": False,
        } | changes
    )  # fmt: skip


def module(source=None, **changes):
    settings = {
        "train_transform": crops(), "test_transform": TestTransform(resize=None), "batch_size": 3,
        "eval_batch_size": 2, "num_workers": 0, "seed": 5, "pin_memory": False, "drop_last": True,
    }  # fmt: skip
    return DataModule(source or TinySource(), **{**settings, **changes})


def epoch(data, number):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


# Which frames


@pytest.mark.parametrize(("share", "count"), [(1 / 16, 186), (1 / 8, 372), (1 / 4, 744), (1 / 2, 1488)])
def test_a_share_is_rounded_to_frames_and_lies_within_larger_ones(share, count):
    names = [f"f{i}" for i in range(2975)]
    got = choose_labeled(share, 0, names)
    assert len(set(got)) == count
    assert got == sorted(got) == choose_labeled(share, 0, names)
    assert set(got) < set(choose_labeled(0.6, 0, names))
    assert set(got) != set(choose_labeled(share, 1, names))
    assert abs(np.mean(got) - 1487) < 200  # from everywhere


@pytest.mark.parametrize("share", [0, 1, 1.0, -0.5, 2, True])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(ConfigError, match=f"labeled={share}: must be a string, or above 0 and below 1"):
        choose_labeled(share, 0, ["a", "b"])
    assert len(choose_labeled(0.01, 0, ["a", "b"])) == 1


def test_an_official_list_names_its_frames_in_any_order(tmp_path):
    chosen_names = [CITY[i] for i in (7, 0, 11, 4)]
    path = written(tmp_path, *map(official, chosen_names))
    assert choose_labeled(str(path), 5, CITY) == [0, 4, 7, 11]
    assert choose_labeled(str(written(tmp_path, *map(official, chosen_names[::-1]))), 0, CITY) == [
        0,
        4,
        7,
        11,
    ]
    assert choose_labeled(str(written(tmp_path, "", *chosen_names, "")), 0, CITY) == [0, 4, 7, 11]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("a__0001", "a__0001"), ("a/0001.png", "a__0001"), ("train/a/0001.jpg x/y.png", "a__0001"),
        ("0002", "a__0002"), ("images\\0002.png", "a__0002"), ("b/0001", "b__0001"), ("two words", "two words"),
        ("d/two words.png", "two words"), ("../b/0001.png", "b__0001"), ("v1.2", "v1.2"), ("v1.2.png", "v1.2"),
    ],
)  # fmt: skip
def test_a_line_is_a_name_or_a_path(tmp_path, line, name):
    names = ["a__0001", "a__0002", "b__0001", "two words", "v1.2"]
    assert listed(written(tmp_path, line), names) == [names.index(name)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("a__0001", "0003"), r"line 2: 0003 is no frame of the training split; its names are like a__0001$"),
        (("a__0002", "", "a/0002.png"), r"line 3: frame a__0002 is there already \(line 1\); name it once$"),
        (("0001.png",), r"line 1: 0001\.png may be 2 frames \(a__0001, b__0001\); write the frame's name$"),
        (("", " "), r"the list is empty; it must name a frame per line$"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, said):
    path = written(tmp_path, *lines)
    with pytest.raises(DataError, match=f"^{path}: {said}"):
        listed(path, ["a__0001", "a__0002", "b__0001"])


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"^data\.labeled=.*none\.txt: no such file; it must name a frame per"
    ):
        listed(tmp_path / "none.txt", ["a"])


def test_chosen_frames_keep_what_they_can():
    frames = chosen(TinyFrames("train"), [4, 2])
    assert type(frames) is Chosen
    assert [frames.name(i) for i in range(len(frames))] == ["train4", "train2"]
    assert torch.equal(frames.load(1)["image"], TinyFrames("train").load(2)["image"])

    class Countable(TinyFrames):
        def label(self, index):
            return self.load(index)["label"]

        def fingerprint(self):
            return "1"

    whole = Countable("train")
    some = chosen(whole, [4, 2])
    assert type(some) is ChosenLabels
    assert torch.equal(some.label(0), whole.label(4))
    prints = {f.fingerprint() for f in (whole, some, chosen(whole, [2, 4]), chosen(whole, [4]))}
    assert len(prints) == 4


# The data module


class Guarded(TinySource):
    """Raises where the label of a frame without one is read; notes what was."""

    def __init__(self, labeled):
        super().__init__()
        self.labeled, self.read = set(labeled), set()

    def frames(self, split, keys):
        return GuardedFrames(self, split, keys)


class GuardedFrames(TinyFrames):
    def __init__(self, source, split, keys):
        super().__init__(split)
        self.source, self.keys = source, keys

    def load(self, index):
        sample = super().load(index)
        if "label" not in self.keys:
            return {"image": sample["image"], "name": sample["name"]}
        if self.split == "train":
            assert index in self.source.labeled, f"label of {self.name(index)} was read"
            self.source.read.add(index)
        return sample


LABELED = choose_labeled(0.4, 0, [f"train{i}" for i in range(11)])


def semi(**changes):
    data = module(
        Guarded(LABELED), **({"labeled": 0.4, "batch_size": 2, "unlabeled_batch_size": 3} | changes)
    )
    data.use(SEMI)
    return data


def test_the_labels_of_the_others_are_never_read():
    data = semi(repeat_rare=0.5)
    batches = epoch(data, 0) + epoch(data, 1)
    data.class_counts()
    list(data.training_labels(20))
    data.remarks()
    data.evaluation_batch("train", 0)
    list(data.training_frames(0, 4))
    assert {name for b in batches for name in b["name"]} == {f"train{i}" for i in LABELED}
    assert data.source.read == set(LABELED)


def test_a_batch_has_both_kinds():
    (first, second) = epoch(semi(), 0)
    for batch in (first, second):
        assert batch["image"].shape == (2, 3, 10, 14)
        assert batch["label"].shape == (2, 10, 14)
        assert batch["unlabeled"].shape == (3, 3, 10, 14)
        assert batch["unlabeled"].dtype == torch.float32
        assert set(batch) == {"image", "label", "name", "unlabeled"}
    assert epoch(semi(unlabeled_batch_size=None), 0)[0]["unlabeled"].shape[0] == 2
    assert [len(b["unlabeled"]) for b in epoch(semi(drop_last=False), 0)] == [3, 3, 1]
    assert [len(b["image"]) for b in epoch(semi(drop_last=False), 0)] == [2, 2, 2]


def test_unlabelled_images_are_normalised_and_padded_like_the_others():
    transform = crops((20, 20), ratio=(1.0, 1.0), cat_max_ratio=None, hflip=0.0)
    data = semi(train_transform=transform, unlabeled_batch_size=7)
    (batch,) = epoch(data, 0)
    assert (batch["unlabeled"][:, :, 12:] == 0).all()
    assert (batch["unlabeled"][..., 16:] == 0).all()
    mean, std = (np.array(v)[:, None, None] for v in (INFO.mean, INFO.std))
    raw = {i: TinyFrames("train").load(i)["image"].numpy() for i in range(11) if i not in LABELED}
    wanted = sorted(float(((image - mean) / std).sum()) for image in raw.values())
    got = sorted(float(image[:, :12, :16].double().sum()) for image in batch["unlabeled"])
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-2)  # each of them once


def test_an_epoch_depends_on_seed_and_number_alone():
    for a, b in zip(epoch(semi(), 3), epoch(semi(num_workers=2), 3), strict=True):
        assert a["name"] == b["name"]
        assert all(torch.equal(a[key], b[key]) for key in ("image", "label", "unlabeled"))
    one, two, other = epoch(semi(), 0), epoch(semi(), 1), epoch(semi(seed=6), 0)
    for key in ("image", "unlabeled"):
        assert not torch.equal(one[0][key], two[0][key])
        assert not torch.equal(one[0][key], other[0][key])


class Recorder(pl.LightningModule):
    """Notes what each step got."""

    def __init__(self, path=None, stop_after=None):
        super().__init__()
        self.weight, self.seen, self.path, self.stop_after = (
            nn.Parameter(torch.zeros(())),
            [],
            path,
            stop_after,
        )

    def training_step(self, batch, batch_idx):
        sums = (float(batch[key].sum()) for key in ("image", "label", "unlabeled"))
        self.seen.append((self.current_epoch, tuple(batch["name"]), *sums))
        return self.weight * batch["image"].sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step == self.stop_after:
            self.trainer.save_checkpoint(self.path)

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.0)


def fit(model, checkpoint=None):
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=semi(), ckpt_path=checkpoint)
    return model


@pytest.mark.filterwarnings("ignore:You passed in a")
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path, stop):
    whole = fit(Recorder(tmp_path / "stop.ckpt", stop))
    assert len(whole.seen) == len(set(whole.seen)) == 6
    assert fit(Recorder(), tmp_path / "stop.ckpt").seen == whole.seen[stop:]


def test_a_supervised_run_sees_the_labelled_frames_alone():
    data = module(Guarded(LABELED), labeled=0.4, batch_size=2)
    (first, second) = epoch(data, 0)
    assert sorted(first["name"] + second["name"]) == sorted(f"train{i}" for i in LABELED)
    assert "unlabeled" not in first
    assert len(data.evaluation_dataset("train")) == 4
    assert [len(data.evaluation_dataset(s)) for s in ("val", "test")] == [5, 4]
    assert data.remarks() == ("labeled 0.4: 4 of 11 training frames have labels",)


def test_val_is_whole_even_where_it_is_the_training_split():
    data = module(labeled=0.4, batch_size=2, val_split="train")
    assert len(data.evaluation_dataset("val")) == 11


def test_counts_are_of_labelled_frames():
    counts = semi().class_counts()
    seen = sum(
        np.bincount(TinyFrames("train").load(i)["label"].flatten(), minlength=256)[:3] for i in LABELED
    )
    assert counts.pixels.tolist() == seen.tolist()


def test_a_method_without_labels_needs_a_subset():
    with pytest.raises(
        ConfigError, match=r"^data\.labeled=null: the method learns from frames without labels"
    ):
        module().use(SEMI)
    with pytest.raises(DataError, match=r"has 7 frames without labels .* batch of 8; lower data\.labeled"):
        semi(unlabeled_batch_size=8).train_dataloader()
    with pytest.raises(ConfigError, match=r"unlabeled_batch_size=0: must be at least 1"):
        module(unlabeled_batch_size=0)


# The sampler


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_both_kinds(world, drop_last):
    own = []
    for rank in range(world):
        sampler = SemiSampler(
            5, 23, labeled_each=2, unlabeled_each=3, seed=1, drop_last=drop_last, rank=rank, world_size=world
        )
        sampler.set_epoch(4)
        draws = list(sampler)
        assert len(draws) == len(sampler)
        batches = [draws[i : i + 5] for i in range(0, len(draws), 5)]
        assert len(batches) == sampler.batches
        for batch in batches:
            assert [d[1] < 5 for d in batch] == [True] * 2 + [False] * (len(batch) - 2)
        sampler.skip = 5
        assert list(sampler) == draws[5:]
        own += draws
    unlabeled = [d for d in own if d[1] >= 5]
    assert len(set(unlabeled)) == len(unlabeled)
    assert len(set(own)) == len(own)  # repeats of a frame have random numbers of their own
    assert 23 - len(unlabeled) < (3 if drop_last else 1) * world
    times = np.bincount([d[1] for d in own if d[1] < 5], minlength=5)
    assert times.max() - times.min() <= 1


def test_the_others_need_no_label_files(tmp_path):
    """Cityscapes with two of four labels; a labelled frame whose file is missing is still told."""
    names = [f"aachen_{i:06d}_000019" for i in range(4)]
    for i, name in enumerate(names):
        kinds = [("leftImg8bit", "leftImg8bit", (5, 7, 3))] + [("gtFine", "gtFine_labelIds", (5, 7))] * (
            i % 2
        )
        for folder, ending, shape in kinds:
            path = tmp_path / folder / "train" / "aachen" / f"{name}_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full(shape, 7, np.uint8)).save(path)
    split = LabeledSplit(Cityscapes(root=str(tmp_path)), "train", str(written(tmp_path, *names[1::2])), 0)
    frames = split.frames(frozenset({"image", "label"}))
    assert [frames.name(i) for i in range(len(frames))] == names[1::2]
    assert set(frames.load(0)["label"].flatten().tolist()) == {0}
    assert [split.without_labels().name(i) for i in range(2)] == names[::2]
    assert int(split.counts().pixels[0]) == 2 * 35
    wrong = LabeledSplit(Cityscapes(root=str(tmp_path)), "train", str(written(tmp_path, *names[:2])), 0)
    with pytest.raises(DataError, match=r"aachen_000000_000019.*no such file"):
        wrong.frames(frozenset({"image", "label"}))
