"""The contract of a method: what is the loss, what is the prediction.

What all methods share lives here and in steps.py: steps, logging, metrics, optimisers. A method never calls a logger,
reads the configuration or names a dataset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from hardpix.methods.steps import Parts, Regression, TrainingSteps
from hardpix.metrics import ImageScore, ImageScores, SegmentationMetrics
from hardpix.ops.hardness import HardMap
from hardpix.ops.resize import resize
from hardpix.types import Batch, DataError, SegOutput


class Method(TrainingSteps):
    """Subclasses set ``self.model`` (a segmenter) and implement ``losses``; ``maps`` and ``forward`` if needed."""

    requires: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    takes_loss: ClassVar[bool] = True  # False: built on plain cross-entropy, any other conf/loss is refused
    other_losses: ClassVar[str] = "method=baseline"  # what that refusal advises
    depends_on_length: ClassVar[bool] = (
        False  # True: the loss knows the last epoch, no run can be made longer
    )
    predicts_by_model: ClassVar[bool] = (
        True  # the prediction is the label output of ``model`` and nothing else
    )
    at_inference: ClassVar[tuple[str, ...]] = ()  # settings that an evaluation may change
    # Children whose running time a test tells apart, and what it is called: {"model": "semantic"}.
    branches: ClassVar[dict[str, str]] = {}

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts, self.info = parts, parts.info
        self.loss = parts.loss
        self._frozen: list[nn.Module] = []
        sizes = parts.info.num_classes, parts.info.ignore_index
        self.metrics = nn.ModuleDict({split: SegmentationMetrics(*sizes) for split in ("val", "test")})
        self.image_scores, self.images = ImageScores(), list[ImageScore]()  # of the last test
        # Of a method that predicts more than classes: {split: {name: metric whose compute() gives named scores}}.
        self.extra_metrics = nn.ModuleDict()

    @classmethod
    def parent_problem(cls, parent: type[Method] | None) -> str | None:
        """Why a run of ``parent`` (None: no run) cannot be this method's parent; None if it can."""
        return None if parent is None else "takes no parent run; init_from=RUN starts from a run's weights"

    def maps(self, batch: Batch) -> dict[str, Tensor]:
        """Maps ``[B, H, W]`` worth looking at, as far as the batch's keys allow; in prediction only ``image``."""
        return {}

    def hard_maps(self) -> dict[str, HardMap]:
        """Which of :meth:`maps` say how hard a pixel is, higher being harder, and the range each is known to have."""
        return {}

    def regressions(self) -> dict[str, Regression]:
        """Outputs of ``model`` that estimate a number; a run sets their biases before the first step."""
        return {}

    def dense(self, image: Tensor) -> Tensor:
        """``[B, 3, H, W]`` (RGB alone: depth is privileged) -> all that is predicted at each pixel, ``[B, x, H, W]``.

        Class logits unless a method predicts more; :attr:`groups` says how the channels are to be averaged.
        """
        return self.enlarge(self.model(image).outputs["label"], image.shape[-2:])

    @property
    def groups(self) -> tuple[int, ...]:
        """Sizes of the groups of ``dense`` channels that are logits of one softmax; what follows has no softmax."""
        return (self.info.num_classes,)

    def decide(self, dense: Tensor) -> Tensor:
        """``dense`` at label size -> class logits ``[B, C, H, W]``, whose argmax is the prediction."""
        return dense[:, : self.info.num_classes]

    def forward(self, image: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> class logits ``[B, C, H, W]``."""
        return self.decide(self.dense(image))

    def keep_frozen(self, *modules: nn.Module) -> None:
        """No gradient, and norm and dropout in inference mode also while the rest trains."""
        for module in modules:
            self._frozen.append(module.requires_grad_(False).eval())

    def train(self, mode: bool = True) -> Method:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def enlarge(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Bilinear to label size with the segmenter's own ``align_corners``, in float32.

        In half precision classes would tie; mmsegmentation converts before it resizes, too.
        """
        return resize(x.float(), (size[-2], size[-1]), align_corners=self.model.align_corners)

    def aux_losses(self, out: SegOutput, label: Tensor) -> dict[str, Tensor]:
        """Plain cross-entropy of every auxiliary head, times its weight (0.4 in mmsegmentation)."""
        return {
            f"aux_{name}": self.parts.aux_weight * self.parts.aux_loss(self.enlarge(x, label.shape), label)
            for name, x in out.aux.items()
        }

    def stage_losses(
        self, out: SegOutput, label: Tensor, criterion: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """``criterion`` of the earlier decisions of a head that decides twice, times the auxiliary heads' weight.

        Part of the decode head, they take what the last decision takes (mmsegmentation: the sampler, HL: the weight).
        """
        return {
            f"stage_{name}": self.parts.aux_weight * criterion(self.enlarge(x, label.shape))
            for name, x in out.stages.items()
        }

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """What trains, in named groups for the optimiser's configuration: one per child, the segmenter by its parts."""
        rest = {n: c for n, c in self.named_children() if n not in ("model", "metrics", "extra_metrics")}
        groups = self.model.parameter_groups() | {n: list(c.parameters()) for n, c in rest.items()}
        trained = {name: [p for p in members if p.requires_grad] for name, members in groups.items()}
        return {name: members for name, members in trained.items() if members}

    def optimizer_remarks(self, optimizer: Optimizer) -> tuple[str, ...]:
        """Lines for the start of a run: what a user should know about the method's settings under this optimiser."""
        return ()

    def predict_logits(self, image: Tensor) -> Tensor:
        """Class logits at the image's size by the configured inference (whole image, windows, scales)."""
        return self.decide(self.predict_dense(image))

    def predict_dense(self, image: Tensor) -> Tensor:
        """:meth:`dense` by the configured inference, at the image's size."""
        return self.parts.infer(self.dense, image, groups=self.groups)

    def output_starts(self) -> dict[str, float]:
        """The present bias of each regressed output."""
        biases = {name: self.model.output_biases(name)[0] for name in self.regressions()}
        return {name: float(bias[0].detach()) for name, bias in biases.items()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._score(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._score(batch, "test")

    def _score(self, batch: Batch, split: str) -> None:
        dense = self.enlarge(self.predict_dense(batch["image"]), batch["label"].shape)
        metric: Any = self.metrics[split]
        metric.update(self.decide(dense).argmax(1), batch["label"])
        if split == "test":
            self.image_scores.update(batch["name"], metric.latest)
        if split in self.extra_metrics:
            self.score_extra(self.extra_metrics[split], dense, batch)

    def score_extra(self, metrics: Any, dense: Tensor, batch: Batch) -> None:
        """Give the ``extra_metrics`` of one split what they score."""

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self.images = self.image_scores.compute()
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        metric: Any = self.metrics[split]
        scores = metric.compute()
        # Over all processes; the run writes it to disk. Of one class torchmetrics makes it a scalar.
        self.confusion = scores["confusion"].cpu().view(self.info.num_classes, -1)
        if scores["invalid"] > 0:
            raise DataError(
                f"{int(scores['invalid'])} label pixels of the {split} split of {self.info.name} are neither one of "
                f"its {self.info.num_classes} classes nor {self.info.ignore_index}; fix the labels"
            )
        names = dict.fromkeys(("miou", "pixel_acc", "mean_acc", self.info.main_metric, "frames"))
        self.log_dict({f"{split}/{name}": scores[name].float() for name in names})
        if split in self.extra_metrics:
            more: Any = self.extra_metrics[split]
            for extra in more.values():
                self.log_dict({f"{split}/{name}": score.float() for name, score in extra.compute().items()})
                extra.reset()
        self.log("mIoU", scores["miou"].float(), prog_bar=True, logger=False)
        metric.reset()

    def configure_optimizers(self) -> Any:
        optimizer = self.parts.build_optimizer(self.parameter_groups())
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], self.parts.build_scheduler(optimizer, steps)
