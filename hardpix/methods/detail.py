"""EP: Erroneous Pixel Prediction for Semantic Image Segmentation: the detail branch, bagging, layer cascade."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hardpix.config.schema import Count, Share, checked
from hardpix.methods.base import Method
from hardpix.methods.error_prediction import ErrorPrediction, OnParentSegmenter, PredictsErrors, Semantic
from hardpix.methods.steps import Parts
from hardpix.metrics import ErrorMetrics, FusionMetrics, MemberMetrics, ShareMetrics
from hardpix.models import DetailBranch, choose_skips, tiles_read
from hardpix.models.layers import Classifiers
from hardpix.ops.errors import accept, fuse_probabilities, max_probability, selected_loss
from hardpix.types import Batch, ConfigError, SegOutput


class RepairsSegmenter(OnParentSegmenter):
    """A method with a ``detail_branch`` on the segmenter."""

    detail_branch: DetailBranch

    def add_detail_branch(self, *, channels: int, attention: str, tracked: bool = False) -> None:
        self.skips = choose_skips(self.model.features)
        self.detail_branch = DetailBranch(
            self.spec(self.high),
            [self.spec(name) for name in self.skips],
            self.info.num_classes,
            channels=channels,
            attention=attention,
            align_corners=self.model.align_corners,
            tracked=tracked,
        )

    def detail_logits(self, semantic: Semantic, image: Tensor) -> Tensor:
        """Logits of P_db ``[B, C, H, W]`` at label size, float32."""
        return self.enlarge(self.detail_map(semantic), image.shape)

    def detail_map(self, semantic: Semantic, **tiles: Any) -> Tensor:
        """Logits of P_db as the branch gives them; of some ``tiles`` where given."""
        features = semantic.features
        return self.detail_branch(features[self.high], [features[name] for name in self.skips], **tiles)


class Detail(PredictsErrors, RepairsSegmenter):
    """A second decoder, trained and used where the error branch of the parent run expects errors (eq. 5.3 to 5.5).

    ``E = [P_ep > t]`` selects the pixels of its loss (eq. 5.8) and those whose classes it decides: the fused
    prediction is the detail branch's on E and the segmenter's elsewhere. Segmenter and error branch stay frozen.

    Args:
        statistics: what normalises the branch's third block at inference (its group norms over the whole map; in
            training always the image): ``image``, as everywhere, or ``tracked``, each group's mean and variance over
            the images of training, which are kept in any case.
        tile: with ``tracked`` statistics, the side in pixels of the tiles on which the third block and all that
            follows runs: only those that a pixel of E reads. Blocks one and two are dense. On E the log-probabilities
            are those of the dense form but for float rounding; elsewhere the segmenter's. Under sliding windows
            and scales each window is an image of its own and is fused on its own: what is averaged then are the
            windows' P_f. Scores that need the branch everywhere (``detail_miou``, fusion at other thresholds than t)
            are left out; ``tiles/run_share`` is the share of tiles that ran in a test. None: dense.
    """

    branches: ClassVar = {"model": "semantic", "error_branch": "error_prediction", "detail_branch": "detail"}
    at_inference = ("tile", "statistics")

    @checked
    def __init__(
        self,
        parts: Parts,
        *,
        t: Share,
        thresholds: Sequence[Share],
        channels: Count,
        attention: str,
        statistics: Literal["image", "tracked"],
        tile: Annotated[int, "[16, inf)"] | None,
    ) -> None:
        super().__init__(parts)
        if tile is not None and statistics == "image":
            raise ConfigError(
                f"method.tile={tile}: statistics of the image need the whole image; set method.statistics=tracked, "
                "or method.tile=null"
            )
        parent = parts.parent
        assert isinstance(parent, ErrorPrediction)
        self.t, self.thresholds, self.rho = t, sorted({*thresholds, t}), parent.rho
        self.error_branch = parent.error_branch
        self.keep_frozen(self.error_branch)
        self.add_detail_branch(channels=channels, attention=attention, tracked=statistics == "tracked")
        self.side = None if tile is None else max(1, tile // self.spec(self.skips[-1]).stride)
        self.tiles_run = self.tiles = 0
        self.extra_metrics = nn.ModuleDict(
            {split: nn.ModuleDict(self._metrics()) for split in ("val", "test")}
        )

    def _metrics(self) -> dict[str, nn.Module]:
        sizes = self.info.num_classes, self.info.ignore_index
        fusion = (
            FusionMetrics(*sizes, self.thresholds) if self.side is None else ChangeMetrics(*sizes, self.t)
        )
        return {
            "error": ErrorMetrics(self.thresholds, rho=self.rho, ignore_index=sizes[1]),
            "fusion": fusion,
        }

    @classmethod
    def parent_problem(cls, parent: type[Method] | None) -> str | None:
        if parent is None or not issubclass(parent, ErrorPrediction):
            given = "" if parent is None else f", not on one of {parent.__name__}"
            return f"needs a run of method=error_prediction (parent=RUN){given}"
        return None

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        image, label = batch["image"], batch["label"]
        semantic = self.semantic(image)
        selected = torch.sigmoid(self.error_logits(semantic, image)[:, 0]) > self.t
        logits = self.detail_logits(semantic, image)
        return {"detail": selected_loss(logits, label, selected, self.info.ignore_index)}

    @property
    def groups(self) -> tuple[int, ...]:
        """Classes of the segmenter; right and wrong; classes of the detail branch (on tiles: of the fusion)."""
        return (self.info.num_classes, 2, self.info.num_classes)

    def dense(self, image: Tensor) -> Tensor:
        """The segmenter's logits, 0 and the logit of P_ep, the detail branch's logits: ``[B, 2 C + 2, H, W]``.

        On tiles the fused log-probabilities stand in place of the detail branch's logits.
        """
        semantic = self.semantic(image)
        error = self.error_map(semantic, image)
        maps = [semantic.raw, torch.zeros_like(error), error]
        if self.side is None:
            return self.side_by_side([*maps, self.detail_map(semantic)], image.shape)
        dense = self.side_by_side(maps, image.shape)
        logits, pair = dense.split(self.groups[:2], 1)
        probability = torch.sigmoid(pair[:, 1])
        detail = self.detail_on_tiles(semantic, probability > self.t, self.side)
        detail = self.enlarge(detail, image.shape)
        return torch.cat([dense, fuse_probabilities(logits, detail, probability, self.t).log_softmax(1)], 1)

    def detail_on_tiles(self, semantic: Semantic, flagged: Tensor, side: int) -> Tensor:
        """:meth:`detail_map` where the enlargement to the pixels ``flagged [B, H, W]`` reads it, 0 elsewhere."""
        finest = semantic.features[self.skips[-1]]
        size, corners = (finest.shape[-2], finest.shape[-1]), self.model.align_corners
        tiles = tiles_read(flagged, size, side, align_corners=corners)
        self.tiles_run, self.tiles = self.tiles_run + int(tiles.sum()), self.tiles + tiles.numel()
        return self.detail_map(semantic, tiles=tiles, side=side)

    def split(self, dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(semantic logits, P_ep ``[B, H, W]``, detail logits) of ``dense`` as any inference returns it."""
        semantic, pair, detail = dense.float().split(self.groups, 1)
        return semantic, torch.sigmoid(pair[:, 1] - pair[:, 0]), detail

    def decide(self, dense: Tensor) -> Tensor:
        """log P_f: each pixel's class log-probabilities are one branch's, by the threshold t."""
        semantic, error, detail = self.split(dense)
        if self.side is not None:
            return detail
        return fuse_probabilities(semantic, detail, error, self.t).log_softmax(
            1
        )  # of the chosen logits alone

    def score_extra(self, metrics: Any, dense: Tensor, batch: Batch) -> None:
        semantic, error, detail = self.split(dense)
        metrics["error"].update(error, semantic, batch["label"])
        metrics["fusion"].update(semantic, detail, error, batch["label"])

    def on_test_epoch_start(self) -> None:
        self.tiles_run = self.tiles = 0

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        if self.side is not None:
            counts: Any = self.all_gather(torch.tensor([self.tiles_run, self.tiles], device=self.device))
            run, total = counts.view(-1, 2).sum(0)  # over all processes
            self.log("tiles/run_share", run / total)

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


class ChangeMetrics(FusionMetrics):
    """What the fusion at t changes, of logits that are fused already: nothing is known of the detail branch alone."""

    def __init__(self, num_classes: int, ignore_index: int, t: float) -> None:
        super().__init__(num_classes, ignore_index, [t])

    def update(
        self, semantic_logits: Tensor, detail_logits: Tensor, error_probability: Tensor, label: Tensor
    ) -> None:
        everywhere = torch.full_like(error_probability, 2.0)  # above every threshold
        super().update(semantic_logits, detail_logits, everywhere, label)

    def compute(self) -> dict[str, Tensor]:
        return {name: score for name, score in super().compute().items() if name != "detail_miou"}


# Bagging of EP (Erroneous Pixel Prediction for Semantic Image Segmentation): what its two branches give on
# average.


class Bagging(RepairsSegmenter):
    """A detail branch trained on every pixel next to a frozen segmenter; the mean of both probabilities decides.

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


# LC-GAU-Decoder of EP (Erroneous Pixel Prediction for Semantic Image Segmentation), a layer cascade.


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
