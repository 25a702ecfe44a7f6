"""HL, Learning Pixel Hardness, on U2PL's student."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from hardpix.losses import ContrastSettings
from hardpix.methods.hardness import HardnessLevel
from hardpix.methods.parts import Parts
from hardpix.methods.semi import MeanTeacher, first
from hardpix.models import Pyramid
from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.ops.semi import reliable_loss
from hardpix.ranges import NonNegative, Positive, Share, ShareBelowOne, checked
from hardpix.types import SegOutput


class U2PLHardness(MeanTeacher, HardnessLevel):
    """U2PL whose student's hardness head weighs the cross-entropy on labels and on pseudo-labels.

    On pseudo-labels the weights sum to 1 over the pixels that survive the entropy filter, whatever
    ``void_in_normalizer`` says, and the factor of (7.1) is dropped; ``hl_on_unlabeled=False`` leaves that loss as
    U2PL's. The teacher has no hardness head.
    """

    other_losses = "method=u2pl"

    @checked
    def __init__(
        self,
        parts: Parts,
        *,
        unreliable: Annotated[float, "[0, 100]"],
        cutmix: Share,
        ema_decay: ShareBelowOne,
        contrastive: bool,
        contrast: ContrastSettings,
        alpha: NonNegative,
        c: Positive,
        normalize_over: Literal["image", "batch"],
        void_in_normalizer: bool,
        hl_on_unlabeled: bool,
    ) -> None:
        super().__init__(
            parts, alpha=alpha, c=c, normalize_over=normalize_over, void_in_normalizer=void_in_normalizer
        )
        self.hl_on_unlabeled = hl_on_unlabeled
        self.set_up(
            unreliable=unreliable,
            cutmix=cutmix,
            ema_decay=ema_decay,
            contrastive=contrastive,
            contrast=contrast,
        )

    def segmentation(
        self, pyramid: Pyramid, out: SegOutput, label: Tensor, pseudo: Tensor, kept: Tensor
    ) -> dict[str, Tensor]:
        count, valid = len(label), label != self.info.ignore_index
        seen = pyramid if self.hl_on_unlabeled else head_of(pyramid, count)
        hardness = self.hardness_logits(seen, label.shape)
        weight = self.weight(hardness[:count], valid, void=self.void_in_normalizer)
        logits = self.enlarge(out.outputs["label"], label.shape)
        losses = self.game("segmentation", "hardness", weight, logits[:count], label, valid)
        if self.hl_on_unlabeled:
            weight_u = self.weight(hardness[count:], kept, void=False)
            losses |= self.game("unsupervised", "hardness_unlabeled", weight_u, logits[count:], pseudo, kept)
        else:
            error = pixel_cross_entropy(logits[count:], pseudo, self.info.ignore_index)
            losses["unsupervised"] = reliable_loss(error, kept)
        stage = self.stage_losses(first(out, count), label, lambda x: self.weighted(weight, x, label, valid))
        return losses | stage


def head_of(pyramid: Pyramid, count: int) -> Pyramid:
    """The maps of the first ``count`` images."""
    return Pyramid([x[:count] for x in pyramid], [x[:count] for x in pyramid.indices], pyramid.sizes)
