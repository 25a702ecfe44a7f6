"""A segmenter trained with the loss of the configuration: cross-entropy, OHEM, focal, loss max-pooling, ..."""

from __future__ import annotations

from torch import Tensor

from hardpix.methods.base import Method, Parts
from hardpix.types import Batch


class Baseline(Method):
    """Minimise ``loss`` on the segmenter's logits, enlarged to label size."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.model = parts.build_model(outputs={"label": parts.info.num_classes})

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        out = self.model(batch["image"])
        logits = self.enlarge(out.outputs["label"], batch["label"].shape)
        return {"segmentation": self.loss(logits, batch["label"])} | self.aux_losses(out, batch["label"])
