"""EP: Erroneous Pixel Prediction for Semantic Image Segmentation: the branch that predicts where a segmenter errs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hardpix.config.schema import Count, NonNegative, Share, checked
from hardpix.methods.base import Method
from hardpix.methods.steps import Parts
from hardpix.metrics import ErrorMetrics
from hardpix.models import ErrorBranch
from hardpix.ops.errors import error_prediction_loss, semantic_errors
from hardpix.ops.hardness import HardMap
from hardpix.ops.resize import resize
from hardpix.types import Batch, FeatureSpec

STRIDE = 4  # the semantic branch's output in the paper, at which the error branch works


class Semantic(NamedTuple):
    """What the frozen segmenter says of a batch."""

    raw: Tensor  # logits [B, C, h, w] as the network gives them
    probability: Tensor  # P_sb [B, C, H/4, W/4]
    features: dict[str, Tensor]  # enc0.. and dec0.., the last dec the deepest
    enlarge: Callable[[Tensor], Tensor]  # to label size

    @property
    def logits(self) -> Tensor:
        """``[B, C, H, W]`` at label size, float32; enlarged again each time."""
        return self.enlarge(self.raw)


class OnParentSegmenter(Method):
    """A method whose ``model`` is the segmenter of its parent run: frozen, norm and dropout in inference mode."""

    takes_loss = False
    predicts_by_model = False

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        assert parts.parent is not None
        self.model = parts.parent.model
        self.keep_frozen(self.model)

    @classmethod
    def parent_problem(cls, parent: type[Method] | None) -> str | None:
        if parent is None:
            return "needs a trained segmenter: give its run, parent=RUN"
        if not parent.predicts_by_model:
            return (
                f"needs the run of a segmenter (method=baseline, hardness, lwm), not one of {parent.__name__}"
            )
        return None

    @property
    def high(self) -> str:
        """Name of F_high, the deepest decoder map (ASPP, pyramid pooling, dense prediction cell)."""
        return [name for name in self.model.features if name.startswith("dec")][-1]

    def spec(self, name: str) -> FeatureSpec:
        return self.model.features[name]

    @torch.no_grad()
    def semantic(self, image: Tensor) -> Semantic:
        """Run the segmenter on ``image`` ``[B, 3, H, W]``, without a graph."""
        out = self.model(image)
        logits = out.outputs["label"]
        size = (-(-image.shape[-2] // STRIDE), -(-image.shape[-1] // STRIDE))
        quarter = resize(logits.float(), size, align_corners=self.model.align_corners)
        enlarge = partial(self.enlarge, size=tuple(image.shape))
        return Semantic(logits, quarter.softmax(1), out.features, enlarge)

    def side_by_side(self, maps: Sequence[Tensor], size: tuple[int, ...]) -> Tensor:
        """Maps ``[B, c_i, h_i, w_i]`` at label size, ``[B, sum of c_i, H, W]`` float32.

        Those of one size are joined first: a single enlargement, and no copy of what is large.
        """
        if all(x.shape[-2:] == maps[0].shape[-2:] for x in maps):
            return self.enlarge(torch.cat([x.float() for x in maps], 1), size)
        return torch.cat([self.enlarge(x, size) for x in maps], 1)


class PredictsErrors(OnParentSegmenter):
    """A method with an ``error_branch`` on the segmenter."""

    error_branch: ErrorBranch
    rho: float  # an error above this probability is hard

    def hard_maps(self) -> dict[str, HardMap]:
        return {"error_probability": HardMap("P(error) of the segmenter")}

    def error_levels(self, logits: Tensor, label: Tensor) -> Tensor:
        """``[B, H, W]``: 0 where the segmenter is right, 1 at its easy and 2 at its hard errors, NaN on void."""
        logits = self.enlarge(logits, label.shape)
        valid, error, hard = semantic_errors(logits, label, self.info.ignore_index, self.rho)
        return (error.float() + hard.float()).masked_fill(~valid, torch.nan)

    def error_logits(self, semantic: Semantic, image: Tensor) -> Tensor:
        """Logits of P_ep ``[B, 1, H, W]`` at label size, float32."""
        return self.enlarge(self.error_map(semantic, image), image.shape)

    def error_map(self, semantic: Semantic, image: Tensor) -> Tensor:
        """Logits of P_ep as the branch gives them."""
        return self.error_branch(semantic.probability, image, semantic.features[self.high])


class ErrorPrediction(PredictsErrors):
    """Learn where the frozen segmenter is wrong (eq. 5.7): P_ep from its probabilities, the image and F_high.

    An error is easy where the segmenter's highest probability is at most ``rho`` and hard above; easy ones weigh
    ``w1``, hard ones ``w2``, correct pixels ``w3``: ``share`` (of erroneous pixels in the image, eq. 5.9), ``ratio``
    (erroneous to correct) or a number, never below ``w3_min``.

    The prediction of classes stays the segmenter's. ``t`` is the threshold of the figures and of the branch that
    follows; ``thresholds`` are those that an evaluation scores, all in one pass.
    """

    branches: ClassVar = {"model": "semantic", "error_branch": "error_prediction"}

    @checked
    def __init__(
        self,
        parts: Parts,
        *,
        rho: Share,
        w1: NonNegative,
        w2: NonNegative,
        w3: Literal["share", "ratio"] | NonNegative,
        w3_min: NonNegative,
        t: Share,
        thresholds: Sequence[Share],
        channels: Count,
        attention: str,
    ) -> None:
        super().__init__(parts)
        self.rho, self.t, self.thresholds = rho, t, sorted({*thresholds, t})
        self.weights: dict[str, Any] = {"w1": w1, "w2": w2, "w3": w3, "w3_min": w3_min}
        self.error_branch = ErrorBranch(
            parts.info.num_classes,
            self.spec(self.high).channels,
            channels=channels,
            attention=attention,
            align_corners=self.model.align_corners,
        )
        self.extra_metrics = nn.ModuleDict(
            {split: nn.ModuleDict({"error": self._error_metrics()}) for split in ("val", "test")}
        )

    def _error_metrics(self) -> ErrorMetrics:
        return ErrorMetrics(self.thresholds, rho=self.rho, ignore_index=self.info.ignore_index)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        semantic = self.semantic(batch["image"])
        errors = semantic_errors(semantic.logits, batch["label"], self.info.ignore_index, self.rho)
        logits = self.error_logits(semantic, batch["image"])
        return {"error_prediction": error_prediction_loss(logits, errors, **self.weights)}

    @property
    def groups(self) -> tuple[int, ...]:
        """Classes of the segmenter; then right and wrong."""
        return (self.info.num_classes, 2)

    def dense(self, image: Tensor) -> Tensor:
        """The segmenter's logits, then 0 and the logit of P_ep: ``[B, C + 2, H, W]``."""
        semantic = self.semantic(image)
        error = self.error_map(semantic, image)
        return self.side_by_side([semantic.raw, torch.zeros_like(error), error], image.shape)

    def error_probability(self, dense: Tensor) -> Tensor:
        """P_ep ``[B, H, W]`` of ``dense`` as any inference returns it."""
        classes = self.info.num_classes
        return torch.sigmoid(dense[:, classes + 1].float() - dense[:, classes].float())

    def score_extra(self, metrics: Any, dense: Tensor, batch: Batch) -> None:
        logits = dense[:, : self.info.num_classes]
        metrics["error"].update(self.error_probability(dense), logits, batch["label"])

    def maps(self, batch: Batch) -> dict[str, Tensor]:
        """``error_probability``: P_ep; with the truth at hand ``errors``: see :meth:`error_levels`."""
        dense = self.predict_dense(batch["image"])
        maps = {"error_probability": self.error_probability(dense)}
        if "label" in batch:
            maps["errors"] = self.error_levels(dense[:, : self.info.num_classes], batch["label"])
        return maps
