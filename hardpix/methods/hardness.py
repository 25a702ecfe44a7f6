"""HL: Not All Pixels Are Equal: Learning Pixel Hardness for Semantic Segmentation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from hardpix.config.schema import NonNegative, Positive, checked
from hardpix.methods.base import Method
from hardpix.methods.steps import Parts
from hardpix.models import Pyramid
from hardpix.ops.hardness import HardMap, hardness_weight, weighted_loss
from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.types import Batch


class HardnessLevel(Method):
    """Learn a hardness map that maximises the weighted loss the segmenter minimises.

    The hardness head is a second, independently initialised instance of the segmentation head with one output,
    on the detached pyramid; it does not exist at inference. ``alpha`` scales its loss: under SGD that is a
    learning-rate factor, under Adam it has next to no effect (Adam is invariant to a gradient's scale).

    ``normalize_over="image"`` with ``void_in_normalizer=False`` is eq. (1) over the labelled pixels of an image:
    a constant map is exactly plain cross-entropy. ``"batch"`` with ``True`` is what the released code computes.
    """

    takes_loss = False

    @checked
    def __init__(
        self,
        parts: Parts,
        *,
        alpha: NonNegative,
        c: Positive,
        normalize_over: Literal["image", "batch"],
        void_in_normalizer: bool,
    ) -> None:
        super().__init__(parts)
        self.model = parts.build_model(outputs={"label": parts.info.num_classes})
        self.hardness = parts.build_head(
            self.model.backbone.specs, {"hardness": 1}, align_corners=self.model.align_corners
        )
        self.alpha, self.c = alpha, c
        self.normalize_over, self.void_in_normalizer = normalize_over, void_in_normalizer

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        label, valid = batch["label"], batch["label"] != self.info.ignore_index
        pyramid = self.model.backbone(batch["image"])
        out = self.model.decode(pyramid)
        weight = self.weight(self.hardness_logits(pyramid, label.shape), valid, void=self.void_in_normalizer)
        logits = self.enlarge(out.outputs["label"], label.shape)
        losses = self.minimax_losses("segmentation", "hardness", weight, logits, label, valid)
        losses |= self.stage_losses(out, label, lambda x: self.weighted(weight, x, label, valid))
        return losses | self.aux_losses(out, label)

    def weight(self, hardness: Tensor, valid: Tensor, *, void: bool) -> Tensor:
        """H ``[B, H, W]`` of the logits D ``[B, 1, H, W]``; ``void``: whether pixels not ``valid`` are in the sum."""
        return hardness_weight(
            hardness, valid, c=self.c, normalize_over=self.normalize_over, void_in_normalizer=void
        )

    def weighted(self, weight: Tensor, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        """(2.4): cross-entropy of ``logits`` at label size, weighted by a map that it does not train."""
        error = pixel_cross_entropy(logits, label, self.info.ignore_index)
        return weighted_loss(weight.detach(), error, valid, self.normalize_over)

    def minimax_losses(
        self, ours: str, theirs: str, weight: Tensor, logits: Tensor, label: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        """(2.4) named ``ours`` and alpha times (2.5) named ``theirs``: one backward pass plays the min-max game.

        Each player sees the other's map as a constant.
        """
        error = pixel_cross_entropy(logits, label, self.info.ignore_index)
        return {
            ours: weighted_loss(weight.detach(), error, valid, self.normalize_over),
            theirs: -self.alpha * weighted_loss(weight, error.detach(), valid, self.normalize_over),
        }

    def hardness_logits(self, pyramid: Pyramid, size: tuple[int, ...]) -> Tensor:
        """D ``[B, 1, H, W]``: enlarged before the sigmoid; no gradient leaves towards the backbone."""
        return self.enlarge(self.hardness(pyramid.detach()).outputs["hardness"], size)

    def optimizer_remarks(self, optimizer: Optimizer) -> tuple[str, ...]:
        return alpha_remarks(optimizer)

    def maps(self, batch: Batch) -> dict[str, Tensor]:
        """``hardness``: Z = sigmoid(D) + c, in (c, 1 + c)."""

        def logits(image: Tensor) -> Tensor:
            return self.hardness_logits(self.model.backbone(image), image.shape)

        z = torch.sigmoid(self.parts.infer(logits, batch["image"]).float()) + self.c
        return {"hardness": z[:, 0]}

    def hard_maps(self) -> dict[str, HardMap]:
        return {"hardness": HardMap("Z", self.c, 1 + self.c)}


def alpha_remarks(optimizer: Optimizer) -> tuple[str, ...]:
    """A line under Adam and AdamW, none under others: what multiplies the hardness head's only gradient is lost."""
    if not isinstance(optimizer, Adam | AdamW):
        return ()
    name = type(optimizer).__name__
    return (
        f"method.alpha: under {name}, which divides by the gradient's size, the hardness head trains all but alike "
        "for every alpha; only eps, clip_norm and the balance with weight decay see it. Tune alpha under optimizer=sgd",
    )
