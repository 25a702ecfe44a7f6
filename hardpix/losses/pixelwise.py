"""Pixel-wise losses: cross-entropy, class-balanced cross-entropy, focal loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hardpix.config.schema import NonNegative, checked
from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.types import ClassCounts, ConfigError


def class_weights(counts: ClassCounts, weighting: str) -> Tensor:
    """``[C]`` float32 weights from pixel counts; a class without a pixel has weight 0 and no say in the others.

    With frequency ``f = pixels / all pixels``: ``inverse`` ``(1/f) / mean(1/f)``; ``enet`` ``1 / ln(1.02 + f)``
    (Paszke et al. 2016); ``median`` ``median(f) / f`` with ``f`` relative to the labelled pixels of the images
    that contain the class (Eigen and Fergus 2015).
    """
    pixels = counts.pixels.double()
    total = counts.image_pixels.double() if weighting == "median" else pixels.sum()
    present = pixels > 0
    frequency = (pixels / total)[present]
    weights = torch.zeros_like(pixels)
    if weighting == "inverse":
        weights[present] = 1 / frequency / (1 / frequency).mean()
    elif weighting == "enet":
        weights[present] = 1 / torch.log(1.02 + frequency)
    else:
        weights[present] = frequency.quantile(0.5) / frequency
    return weights.float()


class BalancedCrossEntropy(nn.Module):
    """Cross-entropy times a weight of the pixel's class.

    ``weights`` (with ``weighting="fixed"``) lists one weight per class; the other weightings are computed once,
    at a run's start (else at the first use), from ``class_counts()`` of the training split. ``normalizer`` divides
    by the number of ``"valid"`` or of ``"all"`` pixels, whatever they weigh; ``weight_normalized=True`` divides by
    the sum of the weights instead (PyTorch's weighted mean).
    """

    weight: Tensor | None  # [C] float32

    @checked
    def __init__(
        self,
        *,
        ignore_index: int,
        num_classes: int,
        class_counts: Callable[[], ClassCounts],
        normalizer: Literal["valid", "all"],
        weighting: Literal["inverse", "median", "enet", "fixed"],
        weights: list[NonNegative] | None,
        weight_normalized: bool,
    ) -> None:
        super().__init__()
        if (weights is not None) != (weighting == "fixed"):
            raise ConfigError(
                "loss.weights must list one number per class with weighting=fixed, else be null."
            )
        if weights is not None and len(weights) != num_classes:
            raise ConfigError(
                f"loss.weights has {len(weights)} numbers, but must have one per class, {num_classes}; list as many, "
                "or set loss=balanced, which computes them from the training labels"
            )
        if weight_normalized and normalizer == "all":
            raise ConfigError(
                "loss.normalizer must be valid with weight_normalized=true, which divides by weights."
            )
        self.ignore_index, self.class_counts = ignore_index, class_counts
        self.normalizer, self.weighting, self.weight_normalized = normalizer, weighting, weight_normalized
        fixed = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        # No buffer: one that appears at the first step would differ between a module and its earlier copies.
        self.weight = fixed

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """``logits`` ``[B, C, H, W]`` at label size, ``label`` ``[B, H, W]``; returns a float32 scalar."""
        self.weight = weight = self._counted().to(logits.device)
        error = pixel_cross_entropy(logits, label, self.ignore_index, weight)
        valid = label != self.ignore_index
        if not self.weight_normalized:
            return normalized_sum(error, valid, self.normalizer)
        total = weight[label[valid]].sum()
        return error.sum() / torch.where(total > 0, total, 1.0)

    def remarks(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The weights as a line to print at a run's start; counts the classes where that is still to be done."""
        weight = self._counted().tolist()
        listed = ", ".join(f"{name} {value:.4g}" for name, value in zip(classes, weight, strict=True))
        return (f"class weights ({self.weighting}): {listed}",)

    def _counted(self) -> Tensor:
        if self.weight is None:
            self.weight = class_weights(self.class_counts(), self.weighting)
        return self.weight


# Cross-entropy, the loss that every other one is compared with.


class CrossEntropy(nn.Module):
    """Mean cross-entropy over the valid pixels, or over all pixels of the batch.

    ``normalizer="valid"`` divides by the labelled pixels (PyTorch's mean); ``"all"`` divides by ``B * H * W``
    so that void pixels dilute the loss (mmsegmentation 0.x, and every published HL number). A batch without
    a labelled pixel costs exactly 0, with a graph.
    """

    @checked
    def __init__(self, *, ignore_index: int, normalizer: Literal["valid", "all"]) -> None:
        super().__init__()
        self.ignore_index, self.normalizer = ignore_index, normalizer

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """``logits`` ``[B, C, H, W]`` at label size, ``label`` ``[B, H, W]``; returns a float32 scalar."""
        error = pixel_cross_entropy(logits, label, self.ignore_index)
        return normalized_sum(error, label != self.ignore_index, self.normalizer)


# Focal loss: confident pixels count less.


class Focal(nn.Module):
    """Softmax focal loss ``(1 - p)^gamma * CE``, p the probability of the true class (Lin et al. 2017, eq. 4).

    The gradient flows through the factor as well. This is the form of the HL comparison, whose factor
    ``2 * alpha`` is 1; the sigmoid form of detection is another function.
    """

    @checked
    def __init__(self, *, ignore_index: int, gamma: NonNegative, normalizer: Literal["valid", "all"]) -> None:
        super().__init__()
        self.ignore_index, self.gamma, self.normalizer = ignore_index, gamma, normalizer

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """``logits`` ``[B, C, H, W]`` at label size, ``label`` ``[B, H, W]``; returns a float32 scalar."""
        error = pixel_cross_entropy(logits, label, self.ignore_index)
        # The floor keeps the power's gradient finite at p = 1, and so on void pixels, for gamma below 1.
        miss = (-torch.expm1(-error)).clamp_min(1e-12)
        return normalized_sum(miss**self.gamma * error, label != self.ignore_index, self.normalizer)


# Reduce pixel losses to one number.


def normalized_sum(error: Tensor, counted: Tensor, normalizer: str) -> Tensor:
    """``sum error / #counted``, or ``/ (B * H * W)`` for ``"all"``; 0 with a graph if none is counted.

    ``error`` ``[B, H, W]`` float32, 0 where it must not contribute; ``counted`` ``[B, H, W]`` bool.
    """
    if normalizer == "all":
        return error.sum() / max(error.numel(), 1)
    return error.sum() / torch.count_nonzero(counted).clamp_min(1)


def check_choice(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key} is {value!r}, but must be one of {', '.join(allowed)}.")
