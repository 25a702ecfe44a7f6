"""Errors of a predicted depth map over a whole split."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from hardpix.types import Batch

NEAREST = 1e-3  # metres: predictions below have no logarithm worth comparing
THRESHOLDS = (1.25, 1.25**2, 1.25**3)


class DepthMetrics(Metric):
    """RMSE (metres), RMSE of ln z, mean ``|z - z*| / z*`` and the shares with ``max(z/z*, z*/z) < 1.25^n``.

    Sums over all pixels of the split with a reading of at most ``depth_max``, in float64; predictions are
    clamped to [1 mm, depth_max]. Predicted is log D of the scale ``D = 1 + 255 z / depth_max``.
    """

    full_state_update = False
    sums: Tensor  # [6] float64
    pixels: Tensor  # int64 scalar

    def __init__(self, depth_max: float) -> None:
        super().__init__()
        self.depth_max = depth_max
        self.add_state("sums", torch.zeros(3 + len(THRESHOLDS), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, extra: Tensor, batch: Batch) -> None:
        """``extra`` ``[B, 1, H, W]`` is log D; a batch without depth counts nothing."""
        if "depth" not in batch:
            return
        truth = batch["depth"].float()
        valid = batch["depth_valid"] & (truth > 0) & (truth <= self.depth_max)
        z = (extra[:, 0].float().exp() - 1) * (self.depth_max / 255)
        z, truth = z.clamp(NEAREST, self.depth_max)[valid].double(), truth[valid].double()
        ratio = torch.maximum(z / truth, truth / z)
        terms = [(z - truth).square(), (z / truth).log().square(), (z - truth).abs() / truth]
        terms += [(ratio < threshold).double() for threshold in THRESHOLDS]
        self.sums += torch.stack([term.sum() for term in terms])
        self.pixels += valid.sum()

    def compute(self) -> dict[str, Tensor]:
        """``depth_rmse``, ``depth_rmse_log``, ``depth_abs_rel``, ``depth_delta1`` to ``3``; empty without a reading."""
        if self.pixels == 0:
            return {}
        means = (self.sums / self.pixels).cpu()
        names = (
            "depth_rmse",
            "depth_rmse_log",
            "depth_abs_rel",
            "depth_delta1",
            "depth_delta2",
            "depth_delta3",
        )
        found: dict[str, Any] = dict(zip(names, means, strict=True))
        for name in names[:2]:
            found[name] = found[name].sqrt()
        return found
