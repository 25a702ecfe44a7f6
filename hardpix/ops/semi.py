"""Mean teachers, pseudo-labels and mixed pictures (U2PL, Semi-Supervised Semantic Segmentation Using Unreliable
Pseudo-Labels, Wang et al. 2022).

Sums over pixels and everything that compares entropies compute in float32 with autocast off.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hardpix.ops.pixel import kth_smallest
from hardpix.ops.precision import without_autocast

Rectangle = tuple[int, int, int, int]  # top, left, height, width


def teacher_decay(iteration: int, most: float) -> float:
    """Decay of the moving average after iteration 0, 1, ...: 0, 1/2, 2/3, ... up to ``most``.

    The average of all students so far, until it would be longer than the final decay's.
    """
    return min(1 - 1 / (iteration + 1), most)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """``teacher = decay * teacher + (1 - decay) * student``, parameters only: buffers stay as they are.

    ``decay=0`` copies exactly.
    """
    for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
        own.copy_(other) if decay == 0 else own.lerp_(other, 1 - decay)


@torch.no_grad()
def entropy(logits: Tensor) -> Tensor:
    """``-sum_c p log(p + 1e-10)`` of the softmax of ``[B, C, H, W]`` logits; ``[B, H, W]`` float32, in nats."""
    with without_autocast(logits):
        prob = logits.float().softmax(1)
        return -(prob * torch.log(prob + 1e-10)).sum(1)


@torch.no_grad()
def percentile(values: Tensor, percent: float) -> Tensor:
    """The ``percent``-th percentile (0 to 100) of all of ``values``, linear between neighbours; a 0-d tensor."""
    flat = values.float().flatten()
    place = percent / 100 * (flat.numel() - 1)
    below = kth_smallest(flat, math.floor(place))
    above = kth_smallest(flat, math.ceil(place))
    return below + (place - math.floor(place)) * (above - below)


def unreliable_percent(first: float, epoch: int, epochs: int) -> float:
    """``a_t = a_0 * (1 - epoch / epochs)``: percent of the pixels that are too uncertain in ``epoch`` (from 0)."""
    return first * (1 - epoch / epochs)


def reliable_loss(error: Tensor, kept: Tensor) -> Tensor:
    """(7.1): the mean of ``error`` over the ``kept`` pixels, times ``B*H*W / #kept``; both ``[B, H, W]``.

    The fewer pixels are left, the more they count. 0, with a graph, where none is.
    """
    with without_autocast(error):
        rest = kept.sum().clamp_min(1)
        return (error.float() * kept).sum() / rest * (error.numel() / rest)


def cut_mix_rectangle(height: int, width: int) -> Rectangle:
    """Half of a picture: a width above half of the picture's, a height to suit, anywhere inside.

    Drawn from torch's generator of the CPU, so that a checkpoint that has its state repeats it.
    """
    low = max(1, min(width // 2 + 1, width - 1))
    across = _integer(low, max(width, low + 1))
    down = min(round(height * width / 2 / across), height)
    left, top = _integer(0, width - across + 1), _integer(0, height - down + 1)
    return top, left, down, across


def cut_mix(x: Tensor, rectangles: list[Rectangle]) -> Tensor:
    """Image ``i`` of ``[U, ..., H, W]`` with rectangle ``i`` of image ``i + 1`` (of the last one: 0) in its place."""
    mixed = x.clone()
    for index, (top, left, height, width) in enumerate(rectangles):
        rows, columns = slice(top, top + height), slice(left, left + width)
        mixed[index, ..., rows, columns] = x[(index + 1) % len(x), ..., rows, columns]
    return mixed


def _integer(low: int, high: int) -> int:
    return int(torch.randint(low, high, ()))
