"""LC-GAU-Decoder of EP (Erroneous Pixel Prediction for Semantic Image Segmentation), a layer cascade."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hardpix.methods.base import Method
from hardpix.methods.parts import Parts
from hardpix.metrics import MemberMetrics, ShareMetrics
from hardpix.models.layers import Classifiers
from hardpix.ops.error import accept, max_probability, selected_loss
from hardpix.ranges import Share, checked
from hardpix.types import Batch, ConfigError, SegOutput

STAGES = ("stage1", "stage2", "stage3")
EARLY_MAPS = ("dec2", "dec1")  # coarse to fine; the third stage is the head's own classifier, on dec0


class LayerCascade(Method):
    """Three stages of one decoder classify in turn; each passes on the pixels that it is not sure of.

    A stage accepts a pixel whose highest probability reaches ``rho``; the third decides what is left. Stage s is
    trained by the cross-entropy over the pixels that no stage before has accepted (a constant to the gradient), and
    the three losses are summed. Probabilities are those at label size, in training as in prediction.

    A pixel of which a stage is sure, but wrong, is lost to the later stages: EP's argument against the cascade.

    Stages are the decoder maps ``dec2``, ``dec1`` and ``dec0``: with ``head=gau_decoder`` the outputs of its blocks.
    """

    takes_loss = False
    predicts_by_model = False

    @checked
    def __init__(self, parts: Parts, *, rho: Share) -> None:
        super().__init__(parts)
        self.rho = rho
        sizes = parts.info.num_classes, parts.info.ignore_index
        self.model = parts.build_model(outputs={"label": sizes[0]})
        decoder = [name for name in self.model.features if name.startswith("dec")]
        if not set(EARLY_MAPS) <= set(decoder):
            raise ConfigError(
                f"head: {type(self.model.head).__name__} has {len(decoder)} decoder map(s), but a layer cascade needs "
                "three stages; use head=gau_decoder"
            )
        self.stages = nn.ModuleDict(
            {
                name: Classifiers(self.model.features[name].channels, {"label": sizes[0]}, nn.Identity())
                for name in EARLY_MAPS
            }
        )
        self.extra_metrics = nn.ModuleDict(
            {
                split: nn.ModuleDict(
                    {"stages": MemberMetrics(STAGES, *sizes), "shares": ShareMetrics(STAGES, sizes[1])}
                )
                for split in ("val", "test")
            }
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        label, ignore_index = batch["label"], self.info.ignore_index
        out = self.model(batch["image"])
        undecided = label != ignore_index
        losses = {}
        for name, logits in zip(STAGES, self._stage_logits(out, label.shape), strict=True):
            losses[name] = selected_loss(logits, label, undecided, ignore_index)
            undecided = undecided & ~accept(logits, undecided, self.rho)
        return losses | self.aux_losses(out, label)

    @property
    def groups(self) -> tuple[int, ...]:
        """Classes of each stage."""
        return (self.info.num_classes,) * len(STAGES)

    def dense(self, image: Tensor) -> Tensor:
        """The logits of the three stages: ``[B, 3 C, H, W]``."""
        return torch.cat(self._stage_logits(self.model(image), image.shape), 1)

    def decide(self, dense: Tensor) -> Tensor:
        """Class log-probabilities of the stage that decides each pixel."""
        stages = dense.float().split(self.groups, 1)
        return self._by_stage([x.log_softmax(1) for x in stages], self.deciding_stage(dense)[:, None])

    def deciding_stage(self, dense: Tensor) -> Tensor:
        """``[B, H, W]`` int64: 0, 1 or 2, the first stage whose highest probability reaches ``rho``, or the last."""
        first, second, _ = dense.split(self.groups, 1)
        later = torch.where(max_probability(second) >= self.rho, 1, 2)
        return torch.where(max_probability(first) >= self.rho, 0, later)

    def score_extra(self, metrics: Any, dense: Tensor, batch: Batch) -> None:
        metrics["stages"].update(dense.split(self.groups, 1), batch["label"])
        metrics["shares"].update(self.deciding_stage(dense), batch["label"])

    def _stage_logits(self, out: SegOutput, size: tuple[int, ...]) -> list[Tensor]:
        """First stage first, at label size."""
        early = [self.stages[name](out.features[name])["label"] for name in EARLY_MAPS]
        return [self.enlarge(x, size) for x in (*early, out.outputs["label"])]

    @staticmethod
    def _by_stage(values: list[Tensor], stage: Tensor) -> Tensor:
        first, second, third = values
        return torch.where(stage == 0, first, torch.where(stage == 1, second, third))
