"""A segmenter trained with the loss of the configuration: cross-entropy, OHEM, focal, loss max-pooling, ..."""

from __future__ import annotations

from torch import Tensor

from hardpix.methods.base import Method
from hardpix.methods.steps import Parts
from hardpix.types import Batch


class Baseline(Method):
    """Minimise ``loss`` on the segmenter's logits, enlarged to label size."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.model = parts.build_model(outputs={"label": parts.info.num_classes})

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        label = batch["label"]
        out = self.model(batch["image"])

        def criterion(logits: Tensor) -> Tensor:
            return self.loss(logits, label)

        losses = {"segmentation": criterion(self.enlarge(out.outputs["label"], label.shape))}
        return losses | self.stage_losses(out, label, criterion) | self.aux_losses(out, label)
