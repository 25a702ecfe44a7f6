"""OCRNet's head against the paper's equations, its sizes against mmsegmentation's list of layers."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.compose import compose
from hardpix.models import OCRHead
from hardpix.models.ocr import gather_regions
from hardpix.train.build import make
from hardpix.types import ConfigError, FeatureSpec

SPECS = tuple(map(FeatureSpec, (4, 8, 8), (3, 4, 5)))
SIZES = ((9, 13), (5, 7), (5, 7))
SIX = {
    "num_classes": 6,
    "channels": 7,
    "ocr_channels": 2,
    "levels": [-1],
    "coarse_levels": [1],
    "coarse_channels": 8,
    "coarse_kernel": 3,
}


def build(outputs=None, *, align_corners=False, dropout=0.0, **changes) -> OCRHead:
    torch.manual_seed(0)
    head = OCRHead(
        SPECS, outputs or {"label": 6}, align_corners=align_corners, dropout=dropout, **SIX | changes
    )
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    for name in ("coarse_classifier", "classifiers"):
        for conv in getattr(head, name).convs.values():
            nn.init.normal_(conv.weight)
            nn.init.normal_(conv.bias)
    return head


@pytest.fixture
def pyramid() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, s.channels, *size) for s, size in zip(SPECS, SIZES, strict=True)]


def layer(block: nn.Sequential, x: np.ndarray, kernel: int = 1) -> np.ndarray:
    """Convolution, norm by running statistics, ReLU; ``[B, c, h, w]`` float64."""
    conv, norm, _ = block
    assert conv.bias is None
    assert conv.kernel_size == (kernel, kernel)
    y = F.conv2d(torch.from_numpy(x), conv.weight.double(), padding=kernel // 2)
    y = F.batch_norm(y, *(t.double() for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)))
    return y.clamp(min=0).detach().numpy()


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max())
    return e / e.sum()


def slow_regions(x: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """f_k = sum_i m_ki x_i, m_k the softmax of region k's logits over all pixels; ``[B, c, K, 1]``."""
    regions = np.zeros((*x.shape[:2], logits.shape[1], 1))
    for b, k in np.ndindex(len(x), logits.shape[1]):
        share = softmax(logits[b, k])
        for i in np.ndindex(*share.shape):
            regions[b, :, k, 0] += share[i] * x[b, :, i[0], i[1]]
    return regions


def slow_attention(block: nn.Module, x: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """y_i = rho(sum_k w_ik delta(f_k)), w_i the softmax over k of phi(x_i).psi(f_k) / sqrt(d); z = g([y, x])."""
    query, key = x, regions
    for step in block.query:
        query = layer(step, query)
    for step in block.key:
        key = layer(step, key)
    value = layer(block.value, regions)
    context = np.zeros((len(x), value.shape[1], *x.shape[2:]))
    for b, i, j in np.ndindex(len(x), *x.shape[2:]):
        alike = [query[b, :, i, j] @ key[b, :, k, 0] / np.sqrt(2) for k in range(key.shape[2])]
        for k, weight in enumerate(softmax(np.array(alike))):
            context[b, :, i, j] += weight * value[b, :, k, 0]
    return layer(block.fuse, np.concatenate([layer(block.out, context), x], 1))


def classify(conv: nn.Conv2d, x: np.ndarray) -> np.ndarray:
    weight, bias = conv.weight[:, :, 0, 0].double(), conv.bias.double()[:, None, None]
    return (torch.einsum("oc,bchw->bohw", weight, torch.from_numpy(x)) + bias).detach().numpy()


def test_head_is_the_equations(pyramid: list[Tensor]) -> None:
    head = build().eval()
    coarse = classify(
        head.coarse_classifier.convs["label"], layer(head.coarse, pyramid[1].double().numpy(), 3)
    )
    x = layer(head.reduce, pyramid[2].double().numpy(), 3)
    augmented = slow_attention(head.attention, x, slow_regions(x, coarse))
    out = head(pyramid)
    np.testing.assert_allclose(out.stages["coarse"].detach(), coarse, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.decoder[0].detach(), augmented, rtol=1e-3, atol=1e-4)
    want = classify(head.classifiers.convs["label"], augmented)
    np.testing.assert_allclose(out.outputs["label"].detach(), want, rtol=1e-3, atol=1e-4)
    assert len(out.decoder) == 1
    assert head.features == (FeatureSpec(8, 7),)
    assert augmented.std() > 0.1  # or nothing was compared


def test_gradient_of_the_gather() -> None:
    """d f_k / d logit_kj = m_kj (x_j - f_k), and d f_k / d x_j = m_kj; nothing is detached."""
    torch.manual_seed(0)
    x, logits, back = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5), torch.randn(2, 3, 6)
    x.requires_grad_()
    logits.requires_grad_()
    regions = gather_regions(x, logits)
    assert regions.shape == (2, 3, 6)
    regions.backward(back)
    share = logits.detach().flatten(2).softmax(2).view_as(logits)
    want_x = torch.einsum("bkhw,bck->bchw", share, back)
    gap = x.detach()[:, :, None] - regions.detach()[..., None, None]
    want_logits = share * torch.einsum("bckhw,bck->bkhw", gap, back)
    torch.testing.assert_close(x.grad, want_x)
    torch.testing.assert_close(logits.grad, want_logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gather_sums_in_float32(dtype: torch.dtype) -> None:
    """A quarter of a million equal shares of 4e-6 each: the mean of ones is one, in half precision and in autocast."""
    x, logits = torch.ones(1, 2, 512, 512), torch.full((1, 3, 512, 512), 30.0)
    got = gather_regions(x.to(dtype), logits.to(dtype))
    assert got.dtype == dtype
    assert (got.float() - 1).abs().max() < 2e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (gather_regions(x, logits) - 1).abs().max() < 1e-5


def test_a_head_in_half_precision(pyramid: list[Tensor]) -> None:
    head = build().eval()
    want = head(pyramid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head(pyramid)
    scale = want.outputs["label"].abs().max()
    assert (got.outputs["label"].float() - want.outputs["label"]).abs().max() < 0.1 * scale
    half = head.bfloat16()([x.bfloat16() for x in pyramid])
    assert half.outputs["label"].dtype == torch.bfloat16
    assert (half.outputs["label"].float() - want.outputs["label"]).abs().max() < 0.1 * scale


@pytest.mark.parametrize("align_corners", [False, True])
def test_coarse_logits_are_enlarged_to_the_second_stage(pyramid: list[Tensor], align_corners: bool) -> None:
    head = build(levels=[0], coarse_levels=[1], align_corners=align_corners).eval()
    out = head(pyramid)
    assert out.stages["coarse"].shape[-2:] == SIZES[1]
    x = head.reduce(pyramid[0])
    seen = F.interpolate(out.stages["coarse"], SIZES[0], mode="bilinear", align_corners=align_corners)
    regions = slow_regions(x.detach().double().numpy(), seen.detach().double().numpy())
    want = head.attention(x, torch.from_numpy(regions[..., 0]).float())
    torch.testing.assert_close(out.decoder[0], want, rtol=1e-4, atol=1e-5)
    assert out.outputs["label"].shape[-2:] == SIZES[0]


def test_levels_are_joined_at_the_finest_for_either_stage(pyramid: list[Tensor]) -> None:
    """HRNet's form: all levels, first stage as wide as they are together, 1x1."""
    head = build(levels=[0, 1, 2], coarse_levels=[0, 1, 2], coarse_channels=None, coarse_kernel=1)
    assert head.coarse[0].weight.shape == (12, 12, 1, 1)
    assert head.reduce[0].weight.shape == (7, 12, 3, 3)
    out = head(pyramid)
    assert out.stages["coarse"].shape == (2, 6, *SIZES[0])
    assert out.outputs["label"].shape == (2, 6, *SIZES[0])


def test_without_label_the_first_stage_keeps_its_classes_and_shows_nothing(pyramid: list[Tensor]) -> None:
    head = build({"hardness": 1})
    out = head(pyramid)
    assert dict(out.stages) == {}
    assert out.outputs["hardness"].shape == (2, 1, 5, 7)
    assert head.coarse_classifier.convs["label"].out_channels == 6
    out.outputs["hardness"].square().sum().backward()
    grads = {n: p.grad for n, p in head.named_parameters()}
    assert all(g is not None for g in grads.values())
    assert grads["coarse_classifier.convs.label.weight"].abs().sum() > 1e-3  # learnt through the gather


def test_the_second_stage_teaches_the_first_and_not_the_other_way_round(pyramid: list[Tensor]) -> None:
    head = build({"label": 6, "depth": 1})
    out = head(pyramid)
    later = [n for n, _ in head.named_parameters() if not n.startswith("coarse")]
    out.stages["coarse"].square().sum().backward()
    assert all(head.get_parameter(n).grad is None for n in later)
    head.zero_grad()
    head(pyramid).outputs["depth"].square().sum().backward()
    assert head.coarse[0].weight.grad.abs().sum() > 1e-3


def test_dropout_stands_before_both_classifiers(pyramid: list[Tensor]) -> None:
    head = build(dropout=1.0)
    out = head(pyramid)
    for logits, name in ((out.stages["coarse"], "coarse_classifier"), (out.outputs["label"], "classifiers")):
        bias = getattr(head, name).convs["label"].bias
        torch.testing.assert_close(logits, bias[:, None, None].expand_as(logits))
    assert out.decoder[0].std() > 0


def test_a_wrong_level_is_told_by_its_setting() -> None:
    with pytest.raises(ConfigError, match=r"head\.coarse_levels=\[3\]: the backbone has levels 0 to 2"):
        build(coarse_levels=[3])
    with pytest.raises(ConfigError, match=r"head\.levels=\[-4\]"):
        build(levels=[-4])


def conv(inputs: int, outputs: int, kernel: int = 1) -> int:
    """Weights of a convolution without bias, and the scale and shift of its norm."""
    return inputs * outputs * kernel**2 + 2 * outputs


def object_context(inputs: int, classes: int) -> int:
    """OCRHead of mmsegmentation 0.22.1 with channels 512 and ocr_channels 256, layer by layer."""
    bottleneck = conv(inputs, 512, 3)
    query = key = conv(512, 256) + conv(256, 256)
    value, out, fuse = conv(512, 256), conv(256, 512), conv(1024, 512)
    return bottleneck + query + key + value + out + fuse + (512 + 1) * classes


RESNET = tuple(map(FeatureSpec, (4, 8, 8, 8), (256, 512, 1024, 2048)))
HRNET = tuple(map(FeatureSpec, (4, 8, 16, 32), (48, 96, 192, 384)))
HRNET_FORM = "levels=[0,1,2,3] coarse_levels=[0,1,2,3] coarse_channels=null coarse_kernel=1 dropout=0"


def configured(specs: tuple[FeatureSpec, ...], classes: int, form: str = "") -> nn.Module:
    cfg = compose(["head=ocr", *(f"head.{setting}" for setting in form.split())])
    with torch.device("meta"):
        return make(cfg.head)(specs, {"label": classes}, num_classes=classes, align_corners=False)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_size_on_a_resnet() -> None:
    first = conv(1024, 256, 3) + (256 + 1) * 19
    assert count(configured(RESNET, 19)) == first + object_context(2048, 19) == 12_996_902


def test_size_on_hrnet_w48() -> None:
    """SegFormer's table 2 gives 70.5 M for OCRNet on HRNet-W48 with ADE20K's 150 classes."""
    with torch.device("meta"):
        backbone = count(timm.create_model("hrnet_w48", features_only=True, feature_location=""))
    width = 48 + 96 + 192 + 384
    for classes, total in ((19, 70_371_446), (150, 70_533_100)):
        head = count(configured(HRNET, classes, HRNET_FORM))
        assert head == conv(width, width) + (width + 1) * classes + object_context(width, classes)
        assert head + backbone == total


def test_the_comment_for_hrnet_is_what_is_tested() -> None:
    from hardpix.config.catalog import conf_dir

    text = (conf_dir() / "head/ocr.yaml").read_text()
    assert " ".join(f"head.{setting}" for setting in HRNET_FORM.split()) in text
