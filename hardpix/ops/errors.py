"""Where a segmenter errs, and what a branch that predicts it and a branch that repairs it cost (EP).

Logits and maps are at label size. All of it computes in float32 with autocast off, and thresholds are compared in
float32, in training as in inference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hardpix.ops.hardness import weighted_loss
from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.ops.precision import without_autocast
from hardpix.types import ConfigError


class Errors(NamedTuple):
    """Which pixels a segmenter misclassifies; ``[B, H, W]`` bool each, without gradient, False on void."""

    valid: Tensor
    error: Tensor
    hard: Tensor  # the errors that the segmenter is sure of; the other errors are easy


def max_probability(logits: Tensor) -> Tensor:
    """The probability of the most probable class, ``[B, C, H, W]`` logits -> ``[B, H, W]`` float32."""
    with without_autocast(logits):
        return logits.float().softmax(1).amax(1)


@torch.no_grad()
def semantic_errors(logits: Tensor, label: Tensor, ignore_index: int, rho: float) -> Errors:
    """Errors of ``logits`` ``[B, C, H, W]`` against ``label`` ``[B, H, W]``; hard where the probability exceeds rho.

    Of classes that tie for the maximum the first is the prediction. A probability of exactly ``rho`` is easy.
    """
    valid = label != ignore_index
    error = valid & (logits.max(1).indices != label)  # argmax, three times faster on the CPU
    return Errors(valid, error, error & (max_probability(logits) > rho))


def error_prediction_loss(
    error_logits: Tensor, errors: Errors, *, w1: float, w2: float, w3: str | float, w3_min: float
) -> Tensor:
    """Weighted binary cross-entropy of the predicted errors (EP's loss of the error-prediction branch), a scalar.

    ``-(w1 sum_easy log P + w2 sum_hard log P + w3 sum_correct log(1 - P)) / |valid|`` of each image with
    ``P = sigmoid(error_logits)``, then the mean over the images that have a valid pixel (0 if there is none).
    ``error_logits`` is ``[B, 1, H, W]`` or ``[B, H, W]``. ``w3`` is ``"share"`` (erroneous pixels of an image /
    its valid ones), ``"ratio"`` (erroneous / correct) or a number; it is never below ``w3_min``. An image without
    an error has share and ratio 0, so that with ``w3_min=0`` it costs nothing.
    """
    x = error_logits[:, 0] if error_logits.ndim == 4 else error_logits
    valid, error, hard = errors
    with without_autocast(x):
        pixels = valid.sum((1, 2), keepdim=True)
        correct = _correct_weight(w3, error.sum((1, 2), keepdim=True), pixels).clamp_min(w3_min)
        weight = torch.where(hard, w2, torch.where(error, w1, correct)) * valid / pixels.clamp_min(1)
        # log P on errors and log(1 - P) elsewhere; void is constant, whatever its logit.
        x = x.float()
        likelihood = F.logsigmoid(torch.where(error, x, -x).masked_fill(~valid, 0))
        return weighted_loss(weight, -likelihood, valid, "image")


def _correct_weight(w3: str | float, errors: Tensor, pixels: Tensor) -> Tensor:
    """Weight ``[B, 1, 1]`` float32 of each image's correct pixels."""
    if w3 == "share":
        return errors / pixels.clamp_min(1)
    if w3 == "ratio":
        return errors / (pixels - errors).clamp_min(1)
    if isinstance(w3, str):
        raise ConfigError(f"w3 is {w3!r}, but must be 'share', 'ratio' or a number.")
    return torch.full(errors.shape, w3, dtype=torch.float32, device=errors.device)


def selected_loss(logits: Tensor, label: Tensor, selected: Tensor, ignore_index: int) -> Tensor:
    """Mean cross-entropy over the selected valid pixels of the batch (EP's loss of the detail branch), a scalar.

    ``logits`` ``[B, C, H, W]``, ``label`` ``[B, H, W]``, ``selected`` ``[B, H, W]`` bool. All other pixels get
    exactly zero gradient; with no selected valid pixel the loss is 0, with a graph.
    """
    label = label.masked_fill(~selected, ignore_index)
    error = pixel_cross_entropy(logits, label, ignore_index)
    return error.sum() / (label != ignore_index).sum().clamp_min(1)


def fuse_probabilities(semantic: Tensor, detail: Tensor, error_probability: Tensor, t: float) -> Tensor:
    """``[B, C, H, W]``: ``detail`` where ``error_probability`` ``[B, H, W]`` exceeds ``t``, else ``semantic``.

    EP's ``E P_db + (1 - E) P_sb`` with binary E: each pixel's values are one branch's, unchanged.
    """
    return torch.where((error_probability.float() > t)[:, None], detail, semantic)


@torch.no_grad()
def accept(logits: Tensor, undecided: Tensor, rho: float) -> Tensor:
    """Which pixels a stage of a layer cascade decides: ``undecided`` ones whose probability reaches ``rho``.

    ``logits`` ``[B, C, H, W]`` of the stage, ``undecided`` ``[B, H, W]`` bool; bool, without gradient.
    """
    return undecided & (max_probability(logits) >= rho)
