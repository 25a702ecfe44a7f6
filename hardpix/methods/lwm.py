"""LWM: Hard Pixel Mining for Depth Privileged Semantic Segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hardpix.config.schema import Count, NonNegative, checked
from hardpix.losses import CrossEntropy
from hardpix.losses.pixelwise import check_choice, normalized_sum
from hardpix.methods.base import Method
from hardpix.methods.steps import Parts, Regression, epochs_of
from hardpix.metrics import DepthMetrics
from hardpix.ops.depth_hardness import (
    DEEPEST,
    FUSIONS,
    Regions,
    curriculum,
    depth_prediction_error,
    depth_regions,
    depth_target,
    fuse,
    image_mean,
    log_depth_loss,
    segmentation_error,
)
from hardpix.ops.hardness import HardMap
from hardpix.ops.pixel import pixel_errors
from hardpix.ops.resize import resize_nearest
from hardpix.types import Batch, ConfigError

CONSTANT = "constant"  # one weight per image; the other kinds weigh pixel by pixel


class DepthTruth:
    """What the depth of a batch says at one resolution: targets, errors of the prediction, regions."""

    def __init__(self, target: Tensor, depth_valid: Tensor, label: Tensor, error: Tensor) -> None:
        self.target, self.depth_valid, self.label, self.error = target, depth_valid, label, error
        self.regions: Regions | None = None

    def shrunk(self, size: tuple[int, int]) -> DepthTruth:
        """The same at ``size``, nearest pixels."""
        maps = (self.target, self.depth_valid, self.label, self.error)
        return DepthTruth(*(resize_nearest(x, size) for x in maps))


class LossWeightModule(Method):
    """Segmentation and depth from one encoder; pixels hard in either weigh more in a further loss (eq. 4.13, 4.15).

    ``L = L_s + L_d + alpha L_h + beta sum_k L_h^k``, where ``L_h`` is the cross-entropy weighted by a map M of
    two errors: DPE, how far the depth of a pixel is missed, and DSE, how many pixels of its region (cell of a
    grid, bin of depth) are misclassified. M is a constant to the gradient. Depth takes part in training alone:
    the network reads RGB.

    hardness: ``sum``, ``product`` or ``max`` of DPE and DSE, ``dpe`` or ``dse`` alone; ``constant``: the mean of
        their sum over each image's labelled pixels, a control without any choice of pixels; ``none``: no ``L_h``,
        side losses are plain cross-entropy, ``loss`` may be any, and ``curriculum`` is self-paced learning on
        the cross-entropy of each pixel (R-18), without any other ``loss``.
    multi_scale: side outputs, a 1x1 convolution on every decoder map, each mined by its own DSE; training only.
    curriculum: the weighted losses take only pixels whose M lies below a threshold that rises from each image's
        median to its maximum, epoch by epoch.
    cells: (rows, columns) of DSE's grid, m; null: one cell per pixel. bin_size: d, of a depth scale of 1 to 256.
    depth_range: ``dataset``: the scale ends at the data set's ``depth_max``; ``image``: at each image's maximum.
    side_resolution: ``full`` enlarges the side outputs to the labels, ``native`` shrinks labels and depth.
    depth_bias: where the bias of the output log D starts; None: at the mean of its target over the training set.

    A plateau schedule watches L_s + L_d, L_s being plain cross-entropy: no pixel is weighted or left out there.
    """

    requires = frozenset({"image", "label", "depth"})
    class_tensors: ClassVar = ("side.",)
    length_setting = "method.curriculum"
    other_losses = "method.hardness=none method.curriculum=false"

    @checked
    def __init__(
        self,
        parts: Parts,
        *,
        alpha: NonNegative,
        beta: NonNegative,
        hardness: str,
        multi_scale: bool,
        curriculum: bool,
        cells: tuple[Count, Count] | None,
        bin_size: Annotated[float, "(0, 256]"],
        depth_range: Literal["dataset", "image"],
        side_resolution: Literal["full", "native"],
        depth_bias: Annotated[float, "[0, 5.546]"] | None = None,
    ) -> None:
        super().__init__(parts)
        check_choice("method.hardness", hardness, ("none", *FUSIONS, CONSTANT))
        if hardness == CONSTANT and curriculum:
            raise ConfigError(
                f"method.hardness={CONSTANT}: the curriculum takes pixels below a threshold, and with one weight per "
                "image it takes none; set method.curriculum=false"
            )
        if depth_range == "dataset" and "depth" in parts.info.provides and parts.info.depth_max is None:
            raise ConfigError(
                f"data set {parts.info.name} names no largest depth; set data.source.depth_max (metres), "
                "or method.depth_range=image"
            )
        self.takes_loss = hardness == "none" and not curriculum  # type: ignore[misc]
        self.depends_on_length = curriculum  # type: ignore[misc]
        self.alpha, self.beta, self.hardness = alpha, beta, hardness
        self.curriculum, self.cells, self.bin_size = curriculum, cells, bin_size
        self.depth_bias = depth_bias
        self.depth_max = parts.info.depth_max if depth_range == "dataset" else None
        self.native_sides = side_resolution == "native"
        self.model = parts.build_model(outputs={"label": parts.info.num_classes, "depth": 1})
        self.side = nn.ModuleDict()
        if multi_scale:
            decoder = {name: spec for name, spec in self.model.features.items() if name.startswith("dec")}
            self.side = nn.ModuleDict(
                {n: nn.Conv2d(s.channels, parts.info.num_classes, 1) for n, s in decoder.items()}
            )
        self.epochs = 1
        self._unweighted = torch.zeros(
            ()
        )  # L_s of the newest batch: plain cross-entropy, whatever is trained
        self._score_depth()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        out = self.model(batch["image"])
        label = batch["label"]
        logits = self.enlarge(out.outputs["label"], label.shape)
        log_depth = self.enlarge(out.outputs["depth"], label.shape)[:, 0]
        truth = self._truth(batch, log_depth.detach())
        losses = {"depth": log_depth_loss(log_depth, truth.target, truth.depth_valid)}
        losses |= self._final_losses(logits, truth)
        if self.side:
            sides = [self._side_loss(out.features[name], head, truth) for name, head in self.side.items()]
            losses["side"] = self.beta * torch.stack(sides).sum()
        plain = self.stage_losses(out, label, lambda logits: self.parts.aux_loss(logits, label))
        return losses | plain | self.aux_losses(out, label)

    def watched(self, losses: dict[str, Tensor]) -> Tensor:
        return self._unweighted.float() + losses["depth"].detach()

    def regressions(self) -> dict[str, Regression]:
        scale = f"log depth, scale to {self.depth_max}"
        return {"depth": Regression(self.depth_bias, frozenset({"depth"}), self._log_depths, scale)}

    def _log_depths(self, sample: Mapping[str, Any]) -> Tensor:
        """log D* of a frame's readings, ``[N]``."""
        depth, valid = sample["depth"][None], sample["depth_valid"][None]
        target, valid = depth_target(depth, valid, self.depth_max)
        return target[valid].log()

    def dense(self, image: Tensor) -> Tensor:
        """Class logits, then log D on the scale of 1 to 256."""
        outputs = self.model(image).outputs
        return self.enlarge(torch.cat([outputs["label"], outputs["depth"]], 1), image.shape[-2:])

    def score_extra(self, metrics: Any, dense: Tensor, batch: Batch) -> None:
        metrics["depth"].update(dense[:, self.info.num_classes :], batch)

    def maps(self, batch: Batch) -> dict[str, Tensor]:
        """``depth`` as predicted, in metres; with the truth at hand DPE, DSE and their fusion."""
        dense = self.predict_dense(batch["image"]).float()
        logits, log_depth = dense[:, :-1], dense[:, -1]
        maps = {}
        if self.depth_max is not None:
            maps["depth"] = (log_depth.exp() - 1).clamp(0, DEEPEST - 1) * (self.depth_max / (DEEPEST - 1))
        if "depth" in batch and "label" in batch:
            truth = self._truth(batch, log_depth)
            _, wrong = pixel_errors(logits, truth.label, self.info.ignore_index)
            maps["dpe"], maps["dse"] = truth.error, self._region_error(wrong, truth)
            if self.hardness in ("sum", "product", "max"):
                maps["hardness"] = fuse(maps["dpe"], maps["dse"], self.hardness)
        return maps

    def hard_maps(self) -> dict[str, HardMap]:
        truth = ("depth", "label")
        known = {
            "dpe": HardMap("DPE", needs=("depth",), where="depth_valid"),
            "dse": HardMap("DSE", needs=truth),
        }
        if self.hardness in ("sum", "product", "max"):
            title = f"M, {self.hardness} of DPE and DSE"
            known["hardness"] = HardMap(title, high=2.0 if self.hardness == "sum" else 1.0, needs=truth)
        return known

    def on_train_start(self) -> None:
        super().on_train_start()
        self.epochs = epochs_of(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["depth_max"] = self.depth_max

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The weights' own scale of depth: they may be scored on a data set with another one, or none."""
        super().on_load_checkpoint(checkpoint)
        self.depth_max = checkpoint.get("depth_max", self.depth_max)
        self._score_depth()

    def _score_depth(self) -> None:
        scale = self.depth_max
        splits = () if scale is None else ("val", "test")
        known = {s: nn.ModuleDict({"depth": DepthMetrics(scale)}) for s in splits if scale is not None}
        self.extra_metrics = nn.ModuleDict(known).to(self.device)

    def _truth(self, batch: Batch, log_depth: Tensor) -> DepthTruth:
        target, valid = depth_target(batch["depth"], batch["depth_valid"], self.depth_max)
        return DepthTruth(target, valid, batch["label"], depth_prediction_error(log_depth, target, valid))

    def _final_losses(self, logits: Tensor, truth: DepthTruth) -> dict[str, Tensor]:
        """L_s and alpha L_h."""
        if self.hardness == "none" and not self.curriculum:
            loss = self.loss(logits, truth.label)
            with torch.no_grad():
                plain = isinstance(self.loss, CrossEntropy)
                self._unweighted = loss.detach() if plain else self.parts.aux_loss(logits, truth.label)
            return {"segmentation": loss}
        valid = truth.label != self.info.ignore_index
        error, wrong = pixel_errors(logits, truth.label, self.info.ignore_index)
        every = self._mean(error, valid)
        self._unweighted = every.detach()
        if self.hardness == "none":
            return {"segmentation": self._mean(error * self._easy(error.detach(), valid), valid)}
        hard = self._mean(self._weight(wrong, truth, valid) * error, valid)
        return {"segmentation": every, "hard": self.alpha * hard}

    def _side_loss(self, feature: Tensor, head: nn.Module, truth: DepthTruth) -> Tensor:
        """L_h^k; plain cross-entropy without a hardness."""
        logits = head(feature)
        if self.native_sides:
            truth = truth.shrunk((logits.shape[-2], logits.shape[-1]))
        logits = self.enlarge(logits, truth.label.shape)
        valid = truth.label != self.info.ignore_index
        error, wrong = pixel_errors(logits, truth.label, self.info.ignore_index)
        if self.hardness != "none":
            error = error * self._weight(wrong, truth, valid)
        elif self.curriculum:
            error = error * self._easy(error.detach(), valid)
        return self._mean(error, valid)

    def _weight(self, wrong: Tensor, truth: DepthTruth, valid: Tensor) -> Tensor:
        """M ``[B, H, W]`` of an output that is ``wrong`` there, 0 where the curriculum leaves a pixel out."""
        weight = truth.error
        if self.hardness == CONSTANT:
            return image_mean(weight + self._region_error(wrong, truth), valid)
        if self.hardness != "dpe":
            weight = fuse(weight, self._region_error(wrong, truth), self.hardness)
        return weight * self._easy(weight, valid) if self.curriculum else weight

    def _region_error(self, wrong: Tensor, truth: DepthTruth) -> Tensor:
        if truth.regions is None:
            truth.regions = depth_regions(
                truth.target,
                truth.depth_valid,
                truth.label != self.info.ignore_index,
                cells=self.cells,
                bin_size=self.bin_size,
            )
        return segmentation_error(wrong, truth.regions)

    def _easy(self, values: Tensor, valid: Tensor) -> Tensor:
        return curriculum(values, valid, min(1.0, (self.current_epoch + 1) / self.epochs))

    def _mean(self, error: Tensor, valid: Tensor) -> Tensor:
        return normalized_sum(error, valid, getattr(self.loss, "normalizer", "valid"))
