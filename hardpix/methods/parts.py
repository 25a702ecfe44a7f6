"""The swappable parts that every method is assembled from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from hardpix.models import Head, Segmenter
from hardpix.types import DatasetInfo

if TYPE_CHECKING:
    from hardpix.methods.steps import TrainingSteps


class Regression(NamedTuple):
    """An output of the segmenter that estimates a number at each pixel, and where its bias starts.

    At 0 such an output begins far from its target, and the large gradients of its loss spoil the shared features.
    """

    start: float | None  # None: the mean of ``target`` over the training frames
    keys: frozenset[str]  # what ``target`` reads of a frame
    target: Callable[
        [Mapping[str, Any]], Tensor
    ]  # a frame's tensors as stored -> the target at its valid pixels, ``[N]``
    identity: str  # of the target: what it depends on besides the frames


class Parts(NamedTuple):
    """What a method is given; factories, so that it may build several networks of one kind."""

    info: DatasetInfo
    build_model: Callable[..., Segmenter]  # (outputs={"label": C}, in_channels=3)
    build_head: Callable[..., Head]  # (specs, outputs, align_corners=), the same head configuration
    loss: nn.Module  # (logits [B, C, H, W], label [B, H, W]) -> scalar, from conf/loss
    aux_loss: nn.Module  # plain cross-entropy with the same normaliser: auxiliary heads are never mined
    aux_weight: float
    infer: Callable[..., Tensor]  # (forward, image, groups=) -> logits: whole image, windows, scales
    build_optimizer: Callable[[dict[str, list[Parameter]]], Optimizer]
    build_scheduler: Callable[[Optimizer, int], list[dict[str, Any]]]
    parent: TrainingSteps | None = None  # the method of the run that this one stands on, with its networks
