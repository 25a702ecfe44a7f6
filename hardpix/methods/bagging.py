"""Bagging of EP (Erroneous Pixel Prediction for Semantic Image Segmentation): what its two branches give on average."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hardpix.methods.detail import RepairsSegmenter
from hardpix.methods.parts import Parts
from hardpix.metrics import MemberMetrics
from hardpix.ops.error import selected_loss
from hardpix.ranges import Count, checked
from hardpix.types import Batch


class Bagging(RepairsSegmenter):
    """A detail branch trained on every pixel beside a frozen segmenter; the mean of both probabilities decides.

    Against EP's fusion it shows what a second decoder gains where nothing says which of the two to trust.
    """

    branches: ClassVar = {"model": "semantic", "detail_branch": "detail"}

    @checked
    def __init__(self, parts: Parts, *, channels: Count, attention: str) -> None:
        super().__init__(parts)
        self.add_detail_branch(channels=channels, attention=attention)
        names, sizes = ("semantic", "detail"), (parts.info.num_classes, parts.info.ignore_index)
        self.extra_metrics = nn.ModuleDict(
            {split: nn.ModuleDict({"members": MemberMetrics(names, *sizes)}) for split in ("val", "test")}
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        image, label = batch["image"], batch["label"]
        logits = self.detail_logits(self.semantic(image), image)
        everywhere = torch.ones_like(label, dtype=torch.bool)
        return {"detail": selected_loss(logits, label, everywhere, self.info.ignore_index)}

    @property
    def groups(self) -> tuple[int, ...]:
        """Classes of the segmenter; classes of the detail branch."""
        return (self.info.num_classes,) * 2

    def dense(self, image: Tensor) -> Tensor:
        """The segmenter's logits, the detail branch's logits: ``[B, 2 C, H, W]``."""
        semantic = self.semantic(image)
        return torch.cat([semantic.logits, self.detail_logits(semantic, image)], 1)

    def decide(self, dense: Tensor) -> Tensor:
        """``log((P_db + P_sb) / 2)``."""
        semantic, detail = (x.log_softmax(1) for x in dense.float().split(self.groups, 1))
        return torch.logaddexp(semantic, detail) - math.log(2)

    def score_extra(self, metrics: Any, dense: Tensor, batch: Batch) -> None:
        metrics["members"].update(dense.split(self.groups, 1), batch["label"])
