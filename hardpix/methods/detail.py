"""EP: Erroneous Pixel Prediction for Semantic Image Segmentation: the branch that repairs predicted errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hardpix.losses.reduction import check_range
from hardpix.methods.base import Method
from hardpix.methods.error_prediction import ErrorPrediction, PredictsErrors, Semantic, StandsOnSegmenter
from hardpix.methods.parts import Parts
from hardpix.metrics import ErrorMetrics, FusionMetrics
from hardpix.models import DetailBranch, choose_skips
from hardpix.ops.error import fuse_probabilities, selected_loss
from hardpix.types import Batch


class RepairsSegmenter(StandsOnSegmenter):
    """A method with a ``detail_branch`` on the segmenter."""

    detail_branch: DetailBranch

    def add_detail_branch(self, *, channels: int, attention: str) -> None:
        self.skips = choose_skips(self.model.features)
        self.detail_branch = DetailBranch(
            self.spec(self.high),
            [self.spec(name) for name in self.skips],
            self.info.num_classes,
            channels=channels,
            attention=attention,
            align_corners=self.model.align_corners,
        )

    def detail_logits(self, semantic: Semantic, image: Tensor) -> Tensor:
        """Logits of P_db ``[B, C, H, W]`` at label size, float32."""
        features = semantic.features
        x = self.detail_branch(features[self.high], [features[name] for name in self.skips])
        return self.enlarge(x, image.shape)


class Detail(PredictsErrors, RepairsSegmenter):
    """A second decoder, trained and used where the error branch of the parent run expects errors (eq. 5.3 to 5.5).

    ``E = [P_ep > t]`` selects the pixels of its loss (eq. 5.8) and those whose classes it decides: the fused
    prediction is the detail branch's on E and the segmenter's elsewhere. Segmenter and error branch stay frozen.
    """

    branches = ("model", "error_branch", "detail_branch")

    def __init__(
        self, parts: Parts, *, t: float, thresholds: Sequence[float], channels: int, attention: str
    ) -> None:
        super().__init__(parts)
        check_range("method.t", t, 0 <= t <= 1, "between 0 and 1")
        parent = parts.parent
        assert isinstance(parent, ErrorPrediction)
        self.t, self.thresholds, self.rho = t, sorted({*thresholds, t}), parent.rho
        self.error_branch = parent.error_branch
        self.keep_frozen(self.error_branch)
        self.add_detail_branch(channels=channels, attention=attention)
        sizes = parts.info.num_classes, parts.info.ignore_index
        self.extra_metrics = nn.ModuleDict(
            {
                split: nn.ModuleDict(
                    {
                        "error": ErrorMetrics(self.thresholds, rho=self.rho, ignore_index=sizes[1]),
                        "fusion": FusionMetrics(*sizes, self.thresholds),
                    }
                )
                for split in ("val", "test")
            }
        )

    @classmethod
    def parent_problem(cls, parent: type[Method] | None) -> str | None:
        if parent is None or not issubclass(parent, ErrorPrediction):
            given = "" if parent is None else f", not on one of {parent.__name__}"
            return f"stands on a run of method=error_prediction (parent=RUN){given}"
        return None

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        image, label = batch["image"], batch["label"]
        semantic = self.semantic(image)
        selected = torch.sigmoid(self.error_logits(semantic, image)[:, 0]) > self.t
        logits = self.detail_logits(semantic, image)
        return {"detail": selected_loss(logits, label, selected, self.info.ignore_index)}

    @property
    def groups(self) -> tuple[int, ...]:
        """Classes of the segmenter; right and wrong; classes of the detail branch."""
        return (self.info.num_classes, 2, self.info.num_classes)

    def dense(self, image: Tensor) -> Tensor:
        """The segmenter's logits, 0 and the logit of P_ep, the detail branch's logits: ``[B, 2 C + 2, H, W]``."""
        semantic = self.semantic(image)
        logit = self.error_logits(semantic, image)
        return torch.cat(
            [semantic.logits, torch.zeros_like(logit), logit, self.detail_logits(semantic, image)], 1
        )

    def split(self, dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(semantic logits, P_ep ``[B, H, W]``, detail logits) of ``dense`` as any inference returns it."""
        semantic, pair, detail = dense.float().split(self.groups, 1)
        return semantic, torch.sigmoid(pair[:, 1] - pair[:, 0]), detail

    def decide(self, dense: Tensor) -> Tensor:
        """log P_f: each pixel's class log-probabilities are one branch's, by the threshold t."""
        semantic, error, detail = self.split(dense)
        return fuse_probabilities(semantic.log_softmax(1), detail.log_softmax(1), error, self.t)

    def score_extra(self, metrics: Any, dense: Tensor, batch: Batch) -> None:
        semantic, error, detail = self.split(dense)
        metrics["error"].update(error, semantic, batch["label"])
        metrics["fusion"].update(semantic, detail, error, batch["label"])

    def maps(self, batch: Batch) -> dict[str, Tensor]:
        """``error_probability``: P_ep; ``changed``: 1 where the fused class is not the segmenter's.

        With the truth at hand ``errors``: see :meth:`error_levels`.
        """
        dense = self.predict_dense(batch["image"])
        semantic, error, _ = self.split(dense)
        changed = self.decide(dense).argmax(1) != semantic.argmax(1)
        maps = {"error_probability": error, "changed": changed.float()}
        if "label" in batch:
            maps["errors"] = self.error_levels(semantic, batch["label"])
        return maps
