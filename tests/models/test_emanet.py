"""EMANet: expectation and maximisation written out in loops, the moving average of the bases, who has a gradient."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.compose import compose
from hardpix.models import EMAHead
from hardpix.models.context import EMAttention
from hardpix.types import FeatureSpec

SPECS = tuple(map(FeatureSpec, (4, 8), (3, 5)))


def attention(*, momentum: float = 0.25, num_stages: int = 3) -> EMAttention:
    torch.manual_seed(0)
    return EMAttention(4, 3, num_stages, momentum)


def head() -> EMAHead:
    torch.manual_seed(0)
    kwargs = {
        "channels": 4,
        "ema_channels": 6,
        "num_bases": 3,
        "num_stages": 2,
        "momentum": 0.1,
        "dropout": 0.1,
    }
    return EMAHead(SPECS, {"label": 2}, levels=[-1], align_corners=False, **kwargs)


def shaken(module: nn.Module) -> nn.Module:
    """In eval, with norm layers that are not the identity."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    return module.eval()


def em(pixels: np.ndarray, bases: np.ndarray, stages: int) -> tuple[np.ndarray, np.ndarray]:
    """One image: pixels ``[n, c]``, bases ``[k, c]`` -> fitted bases and the pixels rebuilt from them.

    E: z_nk = exp(x_n . mu_k) / sum_j exp(x_n . mu_j).  M: mu_k = sum_n z_nk x_n / sum_n z_nk, then length 1.
    Afterwards x_n = sum_k z_nk mu_k, with the last E's z.
    """
    count, kinds = len(pixels), len(bases)
    bases = bases.copy()
    for _ in range(stages):
        z = np.zeros((count, kinds))
        for n in range(count):
            score = [np.exp(sum(pixels[n] * bases[k])) for k in range(kinds)]
            for k in range(kinds):
                z[n, k] = score[k] / sum(score)
        for k in range(kinds):
            mean = sum(z[n, k] * pixels[n] for n in range(count)) / sum(z[:, k])
            bases[k] = mean / np.sqrt(sum(mean**2))
    return bases, np.array([sum(z[n, k] * bases[k] for k in range(kinds)) for n in range(count)])


def expected(module: EMAttention, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Fitted bases ``[B, k, c]`` and the rebuilt maps."""
    weight, bias = module.project.weight[..., 0, 0].double().numpy(), module.project.bias.double().numpy()
    bases = module.bases.double().numpy().T
    fitted, rebuilt = [], []
    for image in x.double().numpy():
        pixels = image.reshape(len(image), -1).T @ weight.T + bias
        mu, y = em(pixels, bases, module.num_stages)
        fitted.append(mu)
        rebuilt.append(y.T.reshape(-1, *image.shape[1:]))
    return np.array(fitted), np.array(rebuilt)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
def test_expectation_and_maximisation_by_loops(stages: int, size: tuple[int, int]) -> None:
    module = attention(num_stages=stages).eval()
    nn.init.normal_(module.project.bias)
    x = 2 * torch.randn(2, 4, *size)
    np.testing.assert_allclose(module(x), expected(module, x)[1], rtol=1e-4, atol=1e-5)


def test_bases_follow_the_batch_in_training_alone() -> None:
    module = attention()
    x = 2 * torch.randn(3, 4, 3, 5)
    start = module.bases.clone()
    np.testing.assert_allclose(start.norm(dim=0), np.ones(3), rtol=1e-6)
    mean = expected(module, x)[0].mean(0)
    mean /= np.sqrt((mean**2).sum(1, keepdims=True))
    module.eval()(x)
    assert torch.equal(module.bases, start)
    module.train()(x)
    np.testing.assert_allclose(module.bases, 0.75 * start.numpy() + 0.25 * mean.T, rtol=1e-4, atol=1e-6)


def test_the_bases_average_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes' batches move the bases as one batch of both would."""
    whole, mine = attention(), attention()
    x = 2 * torch.randn(4, 4, 3, 5)
    others = mine.fit(mine.project(x[2:]).flatten(2))[0].mean(0)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(others))
    mine(x[:2])
    monkeypatch.undo()
    whole(x)
    torch.testing.assert_close(mine.bases, whole.bases)


def test_bases_are_no_parameters_and_nothing_of_the_attention_has_a_gradient() -> None:
    model = head().train()
    assert all(not p.requires_grad for p in model.attention.parameters())
    assert "attention.bases" in dict(model.named_buffers())
    assert not model.attention(torch.randn(2, 6, 3, 4, requires_grad=True)).requires_grad
    pyramid = [torch.randn(2, spec.channels, 3, 4) for spec in SPECS]
    model(pyramid).outputs["label"].sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters()} - {
        "attention.project.weight",
        "attention.project.bias",
    }


def test_bases_survive_saving_and_belong_to_one_head() -> None:
    a, b = head().train(), head().train()
    torch.testing.assert_close(a.attention.bases, b.attention.bases)
    pyramid = [torch.randn(2, spec.channels, 3, 4) for spec in SPECS]
    a(pyramid)
    assert not torch.allclose(a.attention.bases, b.attention.bases)
    saved = copy.deepcopy(a.state_dict())
    before = b.attention.bases
    b.load_state_dict(saved)
    assert b.attention.bases is before
    assert torch.equal(b.attention.bases, a.attention.bases)
    torch.testing.assert_close(a.eval()(pyramid).outputs, b.eval()(pyramid).outputs)


def test_the_whole_head() -> None:
    model = shaken(head())
    x = torch.randn(2, 5, 6, 7)
    cut = F.relu(model.reduce[1](F.conv2d(x, model.reduce[0].weight, padding=1)))
    rebuilt = torch.as_tensor(expected(model.attention, cut.detach())[1], dtype=torch.float32)
    restored = model.restore[1](F.conv2d(rebuilt.clamp(min=0), model.restore[0].weight))
    assert restored.min() < 0  # no ReLU before the sum
    y = F.relu(cut + restored)
    y = F.relu(model.bottleneck[1](F.conv2d(y, model.bottleneck[0].weight, padding=1)))
    y = F.relu(model.fuse[1](F.conv2d(torch.cat([x, y], 1), model.fuse[0].weight, padding=1)))
    out = model([torch.empty(2, 3, 12, 14), x])
    torch.testing.assert_close(out.decoder, [y], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        out.outputs["label"], model.classifiers.convs["label"](y), rtol=1e-4, atol=1e-5
    )


def test_sums_over_pixels_are_in_float32() -> None:
    """Only the projection obeys autocast; in half precision 4096 shares of a base would not add up."""
    module = attention(momentum=1.0)
    x = torch.randn(2, 4, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pixels = module.project(x).flatten(2).float()
        y = module(x)
    attained = module.bases.clone()
    module = attention(momentum=1.0)
    bases, z = module.fit(pixels)
    torch.testing.assert_close(attained, F.normalize(bases.mean(0), dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(y, (bases @ z.mT).view_as(x), rtol=0, atol=1e-5)
    assert module.bfloat16()(x.bfloat16()).dtype == module.bases.dtype == torch.bfloat16
    assert torch.isfinite(module.bases).all()


def test_published_size() -> None:
    """ResNet-101 and 19 classes: mmsegmentation's layers, one by one (norm: two per channel)."""
    config = {k: v for k, v in compose(["head=emanet"]).head.items() if not k.startswith("_")}
    with torch.device("meta"):
        model = EMAHead((FeatureSpec(8, 2048),), {"label": 19}, align_corners=True, **config)
    layers = {
        "reduce": 2048 * 512 * 9 + 2 * 512,
        "attention": 512 * 512 + 512,
        "restore": 512 * 512 + 2 * 512,
        "bottleneck": 512 * 256 * 9 + 2 * 256,
        "fuse": (2048 + 256) * 256 * 9 + 2 * 256,
        "classifiers": 256 * 19 + 19,
    }
    counted = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert counted == layers | {"input": 0}
    assert sum(layers.values()) == 16_458_003
    assert model.attention.bases.shape == (512, 64)
    assert (model.attention.num_stages, model.attention.momentum) == (3, 0.1)
