"""Data-dependent upsampling: the order of its pixels, its fit to labels, and that it never runs without one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from hardpix.models import DUpsamplingHead
from hardpix.models.dupsampling import PATCHES, label_patches, one_hot
from hardpix.train.build import build, fit_to_labels
from hardpix.train.train import train
from hardpix.types import ConfigError, DataError, FeatureSpec, HardpixError

SPECS = tuple(map(FeatureSpec, (4, 8, 16, 16), (3, 4, 5, 6)))
CLASSES, VOID = 3, 255


def make(*, ratio: int = 4, code: int = 5, outputs: dict[str, int] | None = None) -> DUpsamplingHead:
    torch.manual_seed(0)
    return DUpsamplingHead(
        SPECS,
        {"label": CLASSES} if outputs is None else outputs,
        channels=8,
        low_channels=4,
        code_channels=code,
        ratio=ratio,
        dilations=(1, 2),
        project_kernel=3,
        levels=[-1],
        align_corners=False,
        dropout=0.1,
    )


def pyramid(height: int = 32, width: int = 48) -> list[Tensor]:
    return [torch.randn(2, s.channels, -(-height // s.stride), -(-width // s.stride)) for s in SPECS]


def blobs(count: int = 3, height: int = 64, width: int = 96) -> list[Tensor]:
    """Label maps of straight edges, as label maps are, lying differently down and across."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return [(((2 * y + (3 + k) * x) // 37 + (y // (17 + k))) % CLASSES)[None].long() for k in range(count)]


def vectors(labels: list[Tensor], ratio: int, *, start: int = 0, step: int = 1) -> np.ndarray:
    """One-hot patches ``[N, C * ratio**2]`` by loops; those with void are left out."""
    found = []
    for label in labels:
        for image in label.numpy():
            small = image[start::step, start::step]
            for top in range(0, small.shape[0] - ratio + 1, ratio):
                for left in range(0, small.shape[1] - ratio + 1, ratio):
                    v = np.zeros((CLASSES, ratio, ratio))
                    patch = small[top : top + ratio, left : left + ratio]
                    if (patch == VOID).any():
                        continue
                    for i in range(ratio):
                        for j in range(ratio):
                            v[patch[i, j], i, j] = 1
                    found.append(v.ravel())
    return np.stack(found)


def test_pixels_of_a_patch_lie_where_they_were() -> None:
    """The map's output by a loop over patches: a patch's row goes down, its column across."""
    head = make().eval()
    torch.nn.init.normal_(head.spell.weight)
    torch.nn.init.constant_(head.log_temperature, 0.7)
    head.frequency.fill_(1)
    maps = pyramid()
    out = head(maps)
    code = head.classifiers(out.decoder[0])["label"].detach().numpy()
    weight = head.spell.weight.detach().numpy()[..., 0, 0]
    expected = np.zeros((2, CLASSES, 8, 12), np.float32)
    for b in range(2):
        for y in range(8):
            for x in range(12):
                for c in range(CLASSES):
                    entry = c * 16 + (y % 4) * 4 + x % 4
                    expected[b, c, y, x] = weight[entry] @ code[b, :, y // 4, x // 4] / np.exp(0.7)
    np.testing.assert_allclose(out.outputs["label"].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_patch_goes_through_map_and_code_and_back() -> None:
    """With as many code channels as entries nothing is lost: map, patches, code and map again are one order."""
    label = blobs(1, 32, 48)[0]
    head = make(ratio=16, code=CLASSES * 256)
    head.fit_labels(blobs(), VOID)
    patches = one_hot(label_patches(label, 16), CLASSES)  # of 2 x 3 patches
    code = (patches @ head.spell.weight.detach()[..., 0, 0]).T.reshape(1, -1, 2, 3)
    again = head._upsample(code)
    assert again.shape == (1, CLASSES, 32, 48)
    torch.testing.assert_close(again.argmax(1), label)


@pytest.mark.parametrize(("ratio", "start", "step"), [(4, 2, 4), (16, 0, 1), (8, 1, 2)])
def test_the_fit_is_the_principal_subspace_of_the_patches(ratio: int, start: int, step: int) -> None:
    head = make(ratio=ratio)
    labels = blobs()
    labels[0][0, 3:5, 7:9] = VOID
    head.fit_labels(iter(labels), VOID)
    v = vectors(labels, ratio, start=start, step=step)
    values, directions = np.linalg.eigh(v.T @ v)
    best = directions[:, ::-1][:, :5]
    weight = head.spell.weight.detach().double().numpy()[..., 0, 0]
    assert values[-5] > values[-6] * (1 + 1e-6)  # or the subspace is not one
    np.testing.assert_allclose(weight @ weight.T, best @ best.T, atol=1e-5)
    np.testing.assert_allclose(weight.T @ weight, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(np.abs((weight * best).sum(0)), 1, atol=1e-3)  # and in the same order
    np.testing.assert_allclose(head.frequency.numpy(), v.mean(0), atol=1e-6)
    assert (weight.max(0) > -weight.min(0) - 1e-6).all()  # the largest entry is positive


def test_the_fit_reconstructs_labels_better_than_chance() -> None:
    head = make(ratio=8, code=12)
    before = head.spell.weight.detach().clone()[..., 0, 0]
    head.fit_labels(blobs(), VOID)
    patches = one_hot(label_patches(blobs(6)[-1][:, 1::2, 1::2], 8), CLASSES)  # of a map that was not seen
    after = head.spell.weight.detach()[..., 0, 0]

    def error(weight: Tensor) -> float:
        basis = torch.linalg.qr(weight).Q
        return (patches - patches @ basis @ basis.T).square().sum().item() / patches.square().sum().item()

    assert error(after) < 0.5 * error(before)


def test_many_patches_of_a_map_are_drawn_the_same_each_time() -> None:
    label = blobs(1, 300, 300)[0]
    assert len(label_patches(label[:, 2::4, 2::4], 2)) > PATCHES
    a, b = make(ratio=4), make(ratio=4)
    for head in (a, b):
        head.fit_labels([label.repeat(3, 1, 1)], VOID)
        torch.rand(3)  # the global generator has no part in it
    assert torch.equal(a.spell.weight, b.spell.weight)
    state = torch.get_rng_state()
    a.fit_labels([label], VOID)
    assert torch.equal(state, torch.get_rng_state())


def test_unfitted_it_refuses_to_run() -> None:
    head = make()
    with pytest.raises(HardpixError, match="has not been fitted"):
        head(pyramid())
    with pytest.raises(HardpixError, match="has not been fitted"):
        head.eval()(pyramid())
    head.fit_labels(blobs(), VOID)
    assert head.fitted
    loaded = make()
    loaded.load_state_dict(head.state_dict())
    assert loaded.fitted
    maps = pyramid()
    torch.testing.assert_close(loaded.eval()(maps).outputs["label"], head.eval()(maps).outputs["label"])
    assert copy.deepcopy(head).fitted


def test_other_outputs_are_read_at_the_coarse_size_and_need_no_labels() -> None:
    head = make(outputs={"hardness": 1}).train()
    assert head.fitted
    assert head(pyramid()).outputs["hardness"].shape == (2, 1, 2, 3)


def test_an_image_that_does_not_fill_its_patches_is_cut() -> None:
    head = make(ratio=16).eval()
    head.fit_labels(blobs(), VOID)
    maps = pyramid(33, 50)  # 3 x 4 patches of 16; the finest map has 9 x 13 of 4
    assert maps[3].shape[-2:] == (3, 4)
    whole = head._upsample(head.classifiers(head(maps).decoder[0])["label"])
    out = head(maps).outputs["label"]
    assert out.shape == (2, CLASSES, 36, 52)
    torch.testing.assert_close(out, whole[..., :36, :52])


def test_the_map_and_the_temperature_train() -> None:
    head = make().train()
    head.fit_labels(blobs(), VOID)
    (head(pyramid()).outputs["label"] * torch.randn(2, CLASSES, 8, 12)).sum().backward()
    assert head.spell.weight.grad.abs().sum() > 0
    assert head.log_temperature.grad.abs().sum() > 0


def test_labels_of_void_alone() -> None:
    with pytest.raises(DataError, match="no training label has a patch of 16 x 16"):
        make().fit_labels([torch.full((1, 64, 64), VOID)], VOID)
    with pytest.raises(DataError, match="no training label"):
        make().fit_labels([torch.zeros(1, 14, 64, dtype=torch.long)], VOID)


@pytest.mark.parametrize(("ratio", "code"), [(3, 5), (32, 5), (0, 5), (4, 49), (4, 0)])
def test_sizes_that_cannot_be(ratio: int, code: int) -> None:
    with pytest.raises(ConfigError, match=r"head\.ratio"):
        make(ratio=ratio, code=code)


OVERRIDES = ("head=dupsampling", "head.ratio=4", "head.code_channels=6", "backbone.output_stride=16")


@pytest.mark.slow
def test_a_run_fits_before_it_trains_and_never_again(tiny, tmp_path, monkeypatch) -> None:
    calls = []
    original = DUpsamplingHead.fit_labels

    def counted(self, labels, ignore_index):
        maps = list(labels)
        calls.append((len(maps), tuple(maps[0].shape), ignore_index))
        original(self, maps, ignore_index)

    monkeypatch.setattr(DUpsamplingHead, "fit_labels", counted)
    done = train(tiny(*OVERRIDES, "run=a", "trainer.max_steps=2", "scheduler=constant"), [])
    assert calls == [(8, (1, 32, 48), 255)]
    assert done.status == "done"
    train(tiny(*OVERRIDES, "run=a", "trainer.max_steps=3", "scheduler=constant", "resume=true"), [])
    train(tiny(*OVERRIDES, "run=b", "trainer.max_steps=1", f"init_from={tmp_path}/runs/default/a"), [])
    assert len(calls) == 1


def test_labels_are_those_of_the_training_split_unaugmented(tiny) -> None:
    data, method = build(tiny(*OVERRIDES))
    assert fit_to_labels(method, data) == 1
    assert fit_to_labels(method, data) == 0
    labels = list(data.training_labels(300))
    frames = data.evaluation_dataset("train")
    assert len(labels) == len(frames) == 8
    for index, label in enumerate(labels):
        assert torch.equal(label, data.evaluation_batch("train", index)["label"])
    assert [x.shape for x in data.training_labels(3)] == [(1, 32, 48)] * 3
    head = method.model.head
    expected = make_like(head)
    expected.fit_labels(labels, 255)
    assert torch.equal(expected.spell.weight, head.spell.weight)


def make_like(head: DUpsamplingHead) -> DUpsamplingHead:
    other = copy.deepcopy(head)
    other.spell.reset_parameters()
    return other
