"""U2PL: Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels, also with learnt hardness."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hardpix.config.schema import NonNegative, Positive, Share, ShareBelowOne, checked
from hardpix.losses import BankContrast, ContrastSettings
from hardpix.losses.contrast import pixels_of
from hardpix.methods.base import Method
from hardpix.methods.hardness import HardnessLevel
from hardpix.methods.steps import Parts, epochs_of
from hardpix.models import Pyramid
from hardpix.models.layers import Representation
from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.ops.resize import resize
from hardpix.ops.semi import (
    cut_mix,
    cut_mix_rectangle,
    entropy,
    follow,
    percentile,
    reliable_loss,
    teacher_decay,
    unreliable_percent,
)
from hardpix.types import Batch, SegOutput


class MeanTeacher(Method):
    """``model`` learns from labels and from what ``teacher``, its moving average, says of images without.

    The teacher is what predicts. It never gets a gradient; its parameters follow the student's after every step, its
    norms' statistics are those of its own passes in training mode. Entropies are ranked within the process's batch.
    """

    requires: ClassVar = frozenset({"image", "label", "unlabeled"})
    depends_on_length = True  # the share of unreliable pixels ends at 0 with the last epoch
    length_setting = "method.unreliable"
    predicts_by_model = False
    averages = True
    teacher: nn.Module

    def set_up(
        self,
        *,
        unreliable: float,
        cutmix: float,
        ema_decay: float,
        contrastive: bool,
        contrast: ContrastSettings,
    ) -> None:
        """What all subclasses have, once ``model`` is made."""
        self.unreliable, self.cutmix, self.ema_decay = unreliable, cutmix, ema_decay
        self.epochs = 1
        self.contrast = BankContrast(self.info.num_classes, contrast) if contrastive else None
        # One module for each: what makes representations is no part of the segmenter.
        self.representation = (
            Representation(self.model.features["dec0"].channels, contrast.channels, contrast.dropout)
            if contrastive
            else None
        )
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.teacher_representation = copy.deepcopy(self.representation)
        if self.teacher_representation is not None:
            self.teacher_representation.requires_grad_(False)

    def dense(self, image: Tensor) -> Tensor:
        return self.enlarge(self.teacher(image).outputs["label"], image.shape[-2:])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        label, count = batch["label"], len(batch["label"])
        unlabeled = batch["unlabeled"]
        pseudo = self.pseudo_label(unlabeled)
        if float(torch.rand(())) < self.cutmix:
            rectangles = [cut_mix_rectangle(*pseudo.shape[-2:]) for _ in pseudo]
            unlabeled, pseudo = cut_mix(unlabeled, rectangles), cut_mix(pseudo, rectangles)
        image = torch.cat([batch["image"], unlabeled])
        pyramid = self.model.backbone(image)
        out = self.model.decode(pyramid)
        taught = self.teach(image)
        uncertainty = entropy(self.enlarge(taught[0][count:], pseudo.shape))
        percent = unreliable_percent(self.unreliable, self.current_epoch, self.epochs)
        kept = uncertainty < percentile(uncertainty, 100 - percent)
        losses = self.segmentation(pyramid, out, label, pseudo, kept)
        losses |= self.contrasted(out, taught, torch.cat([label, pseudo]), uncertainty, percent)
        return losses | self.aux_losses(first(out, count), label)

    def segmentation(
        self, pyramid: Pyramid, out: SegOutput, label: Tensor, pseudo: Tensor, kept: Tensor
    ) -> dict[str, Tensor]:
        """Losses on the labelled images, the first ones of ``out``, and on the ``kept`` pixels of the others."""

        def criterion(logits: Tensor) -> Tensor:
            return self.loss(logits, label)

        logits = self.enlarge(out.outputs["label"], label.shape)
        error = pixel_cross_entropy(logits[len(label) :], pseudo, self.info.ignore_index)
        losses = {"segmentation": criterion(logits[: len(label)]), "unsupervised": reliable_loss(error, kept)}
        return losses | self.stage_losses(first(out, len(label)), label, criterion)

    @torch.no_grad()
    def pseudo_label(self, unlabeled: Tensor) -> Tensor:
        """The teacher's prediction ``[U, H, W]`` in inference mode."""
        self.teacher.eval()
        pseudo = self.dense(unlabeled).argmax(1)
        self.teacher.train(self.training)
        return pseudo

    @torch.no_grad()
    def teach(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """The teacher's logits in training mode, and its representations where these are contrasted."""
        out = self.teacher(image)
        if self.teacher_representation is None:
            return out.outputs["label"], None
        return out.outputs["label"], self.teacher_representation(out.features["dec0"])

    def contrasted(
        self,
        out: SegOutput,
        taught: tuple[Tensor, Tensor | None],
        label: Tensor,
        uncertainty: Tensor,
        percent: float,
    ) -> dict[str, Tensor]:
        """At the size of the finest decoder map; nothing where representations are not contrasted."""
        if self.contrast is None or self.representation is None or taught[1] is None:
            return {}
        student = self.representation(out.features["dec0"])
        size = (student.shape[-2], student.shape[-1])
        logits = resize(taught[0].float(), size, align_corners=self.model.align_corners)
        ignore_index = self.info.ignore_index
        pixels = pixels_of(student, taught[1], logits.softmax(1), label, uncertainty, percent, ignore_index)
        return {"contrastive": self.contrast(pixels)}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """The teacher follows before anything else, such as a checkpoint, sees the step."""
        iteration = self.trainer.global_step
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.update_teacher(iteration)

    def update_teacher(self, iteration: int) -> None:
        decay = teacher_decay(iteration, self.ema_decay)
        follow(self.teacher, self.model, decay)
        if self.teacher_representation is not None and self.representation is not None:
            follow(self.teacher_representation, self.representation, decay)

    def on_train_start(self) -> None:
        super().on_train_start()
        self.epochs = epochs_of(self.trainer)
        if self.trainer.global_step == 0:  # whatever weights the student starts from
            self.teacher.load_state_dict(self.model.state_dict())
        self.teacher.get_submodule("backbone").freeze(self.model.backbone.frozen)  # type: ignore[operator]


class U2PL(MeanTeacher):
    """``loss`` on labelled pixels, and cross-entropy on pseudo-labels of which the least certain are void (7.1).

    unreliable: percent of the pixels without labels that are void in the first epoch; 0 after the last.
    cutmix: probability that a batch of images without labels is mixed.
    ema_decay: of the teacher, which the first steps approach from 0.
    contrastive: also contrast representations of reliable pixels with a bank of unreliable ones.
    """

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
    ) -> None:
        super().__init__(parts)
        self.model = parts.build_model(outputs={"label": parts.info.num_classes})
        self.set_up(
            unreliable=unreliable,
            cutmix=cutmix,
            ema_decay=ema_decay,
            contrastive=contrastive,
            contrast=contrast,
        )


def first(out: SegOutput, count: int) -> SegOutput:
    """``out`` of the first ``count`` images of a batch."""
    maps = (out.outputs, out.features, out.aux, out.stages)
    return SegOutput(*({name: x[:count] for name, x in some.items()} for some in maps))


# HL, Learning Pixel Hardness, on U2PL's student.


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
        losses = self.minimax_losses("segmentation", "hardness", weight, logits[:count], label, valid)
        if self.hl_on_unlabeled:
            weight_u = self.weight(hardness[count:], kept, void=False)
            losses |= self.minimax_losses(
                "unsupervised", "hardness_unlabeled", weight_u, logits[count:], pseudo, kept
            )
        else:
            error = pixel_cross_entropy(logits[count:], pseudo, self.info.ignore_index)
            losses["unsupervised"] = reliable_loss(error, kept)
        stage = self.stage_losses(first(out, count), label, lambda x: self.weighted(weight, x, label, valid))
        return losses | stage


def head_of(pyramid: Pyramid, count: int) -> Pyramid:
    """The maps of the first ``count`` images."""
    return Pyramid([x[:count] for x in pyramid], [x[:count] for x in pyramid.indices], pyramid.sizes)
