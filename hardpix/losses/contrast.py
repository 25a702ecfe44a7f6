"""Contrast with unreliable pixels (U2PL): anchors against a class's mean and against what the class is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.schema import Count, Positive, Share, Whole
from hardpix.ops.precision import without_autocast
from hardpix.ops.resize import resize_nearest
from hardpix.ops.semi import percentile
from hardpix.types import ConfigError

PUBLISHED_CLASSES = 19  # of Cityscapes, for which the published ranks and sizes are


@dataclass(frozen=True)
class ContrastSettings:
    """The numbers of U2PL's contrastive loss.

    channels, dropout: of the representations, and in what makes them.
    anchors, negatives: drawn per class, and per anchor (with replacement).
    temperature: of the cosine similarities.
    confidence: an anchor's class is more probable than this to the teacher.
    low_rank, high_rank: an unlabelled pixel is a negative of the classes that rank from low_rank (0 the most probable)
        up to but without high_rank; a labelled one of the wrong classes above low_rank.
    bank, bank_first: negatives kept per class, and of class 0.
    """

    channels: Count
    dropout: Share
    anchors: Count
    negatives: Count
    temperature: Positive
    confidence: Share
    low_rank: Whole
    high_rank: Count
    bank: Count
    bank_first: Count


class Pixels(NamedTuple):
    """Pixels of a batch as flat lists, labelled and unlabelled ones alike."""

    student: Tensor  # [N, c] representations
    teacher: Tensor  # [N, c]
    probability: Tensor  # [N, C] the teacher's
    label: Tensor  # [N] class, or the pseudo-label
    labeled: Tensor  # [N] bool: the label is true
    reliable: Tensor  # [N] bool
    unreliable: Tensor  # [N] bool


def pixels_of(
    student: Tensor,
    teacher: Tensor,
    probability: Tensor,
    label: Tensor,
    uncertainty: Tensor,
    percent: float,
    ignore_index: int,
) -> Pixels:
    """The pixels of maps: ``student``, ``teacher`` ``[B, c, h, w]``, ``probability`` ``[B, C, h, w]``.

    ``label`` ``[B, H, W]``: true labels, then pseudo-labels, of which ``uncertainty`` ``[U, H, W]`` is the entropy.
    Of the latter the ``percent`` least and most uncertain are reliable and unreliable; a true label is both, being
    sure and yet to be learnt.
    """
    size = (student.shape[-2], student.shape[-1])
    labeled = len(label) - len(uncertainty)
    true = label[:labeled] != ignore_index
    low, high = percentile(uncertainty, percent), percentile(uncertainty, 100 - percent)
    place = torch.arange(len(label), device=label.device)

    def flat(maps: Tensor) -> Tensor:
        return maps.movedim(1, -1).flatten(0, 2)

    return Pixels(
        student=flat(student),
        teacher=flat(teacher),
        probability=flat(probability),
        label=resize_nearest(label, size).flatten(),
        labeled=(place < labeled).repeat_interleave(size[0] * size[1]),
        reliable=resize_nearest(torch.cat([true, uncertainty <= low]), size).flatten(),
        unreliable=resize_nearest(torch.cat([true, uncertainty >= high]), size).flatten(),
    )


class BankContrast(nn.Module):
    """InfoNCE of reliable pixels; the negatives come from a bank of unreliable ones, first in, first out.

    The bank consists of buffers: a resumed run goes on with it. Under DDP it is that of the first process, as every
    buffer is.
    """

    rows: Tensor
    filled: Tensor
    next: Tensor

    def __init__(self, num_classes: int, settings: ContrastSettings) -> None:
        super().__init__()
        low, self.high = settings.low_rank, min(settings.high_rank, num_classes)
        if low >= self.high:
            raise ConfigError(
                f"method.contrast.low_rank={low} method.contrast.high_rank={settings.high_rank}: no rank of "
                f"{num_classes} classes lies between them, so no pixel without a label would be a negative (they are "
                f"for {PUBLISHED_CLASSES} classes); {_advice(num_classes)}"
            )
        self.settings = settings
        self.sizes = [settings.bank_first] + [settings.bank] * (num_classes - 1)
        self.starts = [sum(self.sizes[:c]) for c in range(num_classes)]
        self.register_buffer("rows", torch.zeros(sum(self.sizes), settings.channels))
        self.register_buffer("filled", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("next", torch.zeros(num_classes, dtype=torch.int64))

    def remarks(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Which classes are contrasted, and what the bank takes, as a line to print at a run's start."""
        number, high = len(classes), self.high
        line = (
            f"contrast: a pixel without a label is a negative of the classes that rank {self.settings.low_rank} to "
            f"{high - 1} of 0 to {number - 1}; the bank takes {self.rows.numel() * 4 / 1e9:.2g} GB"
        )
        if number == PUBLISHED_CLASSES:
            return (line,)
        more = f", and method.contrast.high_rank={number} takes in the others" * (high < number)
        return (f"{line}; the ranks were chosen for {PUBLISHED_CLASSES} classes{more}",)

    def forward(self, pixels: Pixels) -> Tensor:
        """A float32 scalar; 0, with a graph, where fewer than two classes have a reliable pixel."""
        with without_autocast(pixels.student):
            self._feed(pixels)
            reliable = pixels.label[pixels.reliable]
            present = reliable.unique().tolist()
            student = pixels.student.float()
            nothing = 0.0 * student.sum()
            if len(present) < 2:
                return nothing
            return sum((self._of_class(c, pixels, student) for c in present), nothing) / len(present)

    @torch.no_grad()
    def _feed(self, pixels: Pixels) -> None:
        chosen = negative_of(pixels, self.settings.low_rank, self.high)
        for c in range(len(self.sizes)):
            self.push(c, pixels.teacher[chosen[:, c]].float())

    def push(self, c: int, keys: Tensor) -> None:
        """Put ``[n, channels]`` into the bank of class ``c``, in place of the oldest where it is full."""
        size, start = self.sizes[c], self.starts[c]
        keys = keys[-size:]
        first = int(self.next[c])
        places = (first + torch.arange(len(keys), device=keys.device)) % size
        self.rows[start + places] = keys
        self.next[c] = (first + len(keys)) % size
        self.filled[c] = min(size, int(self.filled[c]) + len(keys))

    def stored(self, c: int) -> Tensor:
        """``[n, channels]`` of class ``c``; the oldest is not first once the bank is full."""
        return self.rows[self.starts[c] : self.starts[c] + int(self.filled[c])]

    def _of_class(self, c: int, pixels: Pixels, student: Tensor) -> Tensor:
        of_class = pixels.reliable & (pixels.label == c)
        candidates = student[of_class & (pixels.probability[:, c] > self.settings.confidence)]
        bank = self.stored(c)
        if not len(candidates) or not len(bank):
            return 0.0 * student.sum()
        anchors = candidates[_draw(len(candidates), (self.settings.anchors,), student)]
        negatives = bank[_draw(len(bank), (self.settings.anchors, self.settings.negatives), student)]
        positive = pixels.teacher[of_class].detach().float().mean(0)
        return info_nce(anchors, positive, negatives, self.settings.temperature)


def negative_of(pixels: Pixels, low_rank: int, high_rank: int) -> Tensor:
    """``[N, C]`` bool: of which classes each unreliable pixel is an example of what they are not.

    An unlabelled pixel of those that it is unlikely to be, a labelled one of those that the teacher likes and that are
    wrong.
    """
    order = pixels.probability.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(1)
    classes = torch.arange(rank.shape[1], device=rank.device)
    wrong = (rank < low_rank) & (pixels.label[:, None] != classes)
    unlikely = (rank >= low_rank) & (rank < high_rank)
    return torch.where(pixels.labeled[:, None], wrong, unlikely) & pixels.unreliable[:, None]


def info_nce(anchors: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """``-log(e^(a.p) / (e^(a.p) + sum_n e^(a.n)))``, mean over the anchors; cosines over the temperature.

    ``anchors`` ``[A, c]``, ``positive`` ``[c]``, ``negatives`` ``[A, n, c]``; a float32 scalar.
    """
    others = torch.cat([positive.expand(len(anchors), 1, -1), negatives], 1)
    similarity = F.cosine_similarity(anchors[:, None], others, dim=2) / temperature
    return -similarity.log_softmax(1)[:, 0].mean()


def _advice(classes: int) -> str:
    if classes < 2:
        return "set method.contrastive=false, since one class has no other to be contrasted with"
    low = max(1, round(3 * classes / PUBLISHED_CLASSES))
    return f"set method.contrast.low_rank={low} method.contrast.high_rank={classes}"


def _draw(count: int, size: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.randint(count, size, device=like.device)
