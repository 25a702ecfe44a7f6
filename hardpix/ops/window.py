"""Prediction of whole images: in one piece, by sliding window, at several scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hardpix.config.schema import Count, Positive, checked
from hardpix.ops.resize import resize
from hardpix.types import ConfigError

Forward = Callable[[Tensor], Tensor]  # image [B, 3, H, W] -> logits [B, C, H, W]


class WholeImage:
    """One forward pass over the image, which is first fitted into ``base_size`` where that is given.

    Args:
        base_size: (long, short) limits in pixels that the image is enlarged or reduced to, keeping its ratio;
            None leaves its size.
        align_corners: of the resize of the logits back to the image's size.
    """

    @checked
    def __init__(self, *, base_size: tuple[Count, Count] | None, align_corners: bool) -> None:
        self.base_size = None if base_size is None else (base_size[0], base_size[1])
        self.align_corners = align_corners

    def __call__(
        self, forward: Forward, image: Tensor, *, scale: float = 1.0, groups: Sequence[int] | None = None
    ) -> Tensor:
        """``image`` ``[B, 3, H, W]`` -> logits ``[B, C, H, W]``; ``scale`` multiplies the base size.

        ``groups`` is there for :class:`MultiScale` alone: here every channel is treated alike.
        """
        height, width = image.shape[-2:]
        resized = resize(image, fitted_size((height, width), self.base_size, scale))
        logits = self.predict(forward, resized)
        return resize(logits, (height, width), align_corners=self.align_corners)

    def predict(self, forward: Forward, image: Tensor) -> Tensor:
        return forward(image)


class SlidingWindow(WholeImage):
    """Logits averaged over overlapping windows; one accumulator, whatever the number of windows.

    Args:
        crop: (height, width) of the window. A smaller image is padded with 0 below and to the right, and the
            logits are cut back.
        stride: (height, width) between windows; the last one is shifted back inside.
        batch: windows (of every image) per forward pass.
    """

    @checked
    def __init__(
        self,
        *,
        crop: tuple[Count, Count],
        stride: tuple[Count, Count],
        batch: Count,
        base_size: tuple[Count, Count] | None,
        align_corners: bool,
    ) -> None:
        super().__init__(base_size=base_size, align_corners=align_corners)
        self.crop, self.stride = (crop[0], crop[1]), (stride[0], stride[1])
        if any(s > c for s, c in zip(self.stride, self.crop, strict=True)):
            raise ConfigError(
                f"inference.stride is {list(self.stride)}, but must not exceed the crop {list(self.crop)}, "
                "or pixels between windows would get no prediction."
            )
        self.batch = batch

    def predict(self, forward: Forward, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        low = [max(c - s, 0) for c, s in zip(self.crop, (height, width), strict=True)]
        padded = F.pad(image, (0, low[1], 0, low[0])) if any(low) else image
        (h, w), size = self.crop, padded.shape[-2:]
        ys, xs = (window_starts(n, c, s) for n, c, s in zip(size, self.crop, self.stride, strict=True))
        if len(ys) == len(xs) == 1:
            return forward(padded)[..., :height, :width]
        total = self._sum(forward, padded, [(y, x) for y in ys for x in xs])
        _divide_by_visits(total, 2, ys, h)
        _divide_by_visits(total, 3, xs, w)
        return total[..., :height, :width]

    def _sum(self, forward: Forward, image: Tensor, corners: list[tuple[int, int]]) -> Tensor:
        """Sum of the windows' logits in float32."""
        (h, w), total = self.crop, None
        for i in range(0, len(corners), self.batch):
            group = corners[i : i + self.batch]
            crops = [image[..., y : y + h, x : x + w] for y, x in group]
            # Handed straight on: a name would keep these logits in memory during the next forward pass.
            total = _add(total, forward(torch.cat(crops) if len(crops) > 1 else crops[0]), group, image)
        assert total is not None
        return total


class MultiScale:
    """Class probabilities averaged over scales and, with ``flip``, over mirrored images (mmsegmentation).

    Returns the logarithm of the average, so that its softmax is the average and its argmax the prediction. A map
    of one channel (a hardness map) and channels after the groups (depth) have no probabilities: their values are
    averaged as they are.

    Args:
        inner: whole image or sliding window; each scale multiplies its base size.
    """

    @checked
    def __init__(self, inner: WholeImage, *, scales: Sequence[Positive], flip: bool) -> None:
        if not scales:
            raise ConfigError(f"inference.scales is {list(scales)}, but must list one number or more.")
        self.inner, self.scales, self.flip = inner, tuple(scales), flip

    def __call__(self, forward: Forward, image: Tensor, *, groups: Sequence[int] | None = None) -> Tensor:
        """``image`` ``[B, 3, H, W]`` -> log-probabilities ``[B, C, H, W]`` (or the mean map if C is 1).

        ``groups``: sizes of the groups of channels, from the first on, that are logits of one softmax each; None:
        all of them are one group.
        """
        total: Tensor | float = 0.0
        for scale in self.scales:
            total = total + _values(self.inner(forward, image, scale=scale), groups)
            if self.flip:
                total = total + _values(self.inner(forward, image.flip(-1), scale=scale), groups).flip(-1)
        assert isinstance(total, Tensor)
        mean = total / (len(self.scales) * (1 + self.flip))
        with_softmax = sum(_groups(mean, groups))
        mean[:, :with_softmax] = mean[:, :with_softmax].clamp_min(torch.finfo(mean.dtype).tiny).log()
        return mean


def window_starts(size: int, crop: int, stride: int) -> list[int]:
    """Where the windows along one side begin; the last one is shifted back inside, and a short side has one."""
    count = max(size - crop + stride - 1, 0) // stride + 1
    return [max(min(k * stride, size - crop), 0) for k in range(count)]


def fitted_size(native: tuple[int, int], base_size: tuple[int, int] | None, scale: float) -> tuple[int, int]:
    """(H, W) of an image fitted into ``base_size`` (long, short) times ``scale``, its ratio kept (mmsegmentation)."""
    if base_size is None:
        factor = scale
    else:
        limits = [int(limit * scale) for limit in base_size]
        factor = min(max(limits) / max(native), min(limits) / min(native))
    return max(1, int(native[0] * factor + 0.5)), max(1, int(native[1] * factor + 0.5))


def _add(total: Tensor | None, logits: Tensor, corners: list[tuple[int, int]], image: Tensor) -> Tensor:
    """Add the logits of some windows, ``[len(corners) * B, C, h, w]``, to the map of the whole image."""
    if total is None:
        total = _zeros((len(image), logits.shape[1], *image.shape[-2:]), logits.device)
    h, w = logits.shape[-2:]
    for (y, x), part in zip(corners, logits.split(len(image)), strict=True):
        total[..., y : y + h, x : x + w] += part
    return total


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """NumPy asks the system for huge pages: 19 classes at 1025 x 2049 are there four times sooner than by torch."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device)
    return torch.from_numpy(np.empty(shape, np.float32)).zero_()


def _divide_by_visits(total: Tensor, dim: int, starts: list[int], crop: int) -> None:
    """Visits are a product of those along each side, and only strips where windows overlap have more than one."""
    visits = torch.zeros(total.shape[dim], dtype=torch.int64)
    for start in starts:
        visits[start : start + crop] += 1
    values, lengths = visits.unique_consecutive(return_counts=True)
    for value, part in zip(values.tolist(), total.split(lengths.tolist(), dim), strict=True):
        if value > 1:
            part /= value


def _values(logits: Tensor, groups: Sequence[int] | None) -> Tensor:
    """Each group of logits as probabilities; channels after the groups as they are."""
    sizes = _groups(logits, groups)
    parts = logits.float().split([*sizes, logits.shape[1] - sum(sizes)], 1)
    return torch.cat([*(part.softmax(1) for part in parts[:-1]), parts[-1]], 1)


def _groups(logits: Tensor, groups: Sequence[int] | None) -> Sequence[int]:
    if groups is not None:
        return groups
    return [] if logits.shape[1] == 1 else [logits.shape[1]]
