"""Parts of a network that start from the training labels are fitted to them before the first step."""

from __future__ import annotations

from typing import Any

from torch import nn

from hardpix.data import DataModule

LABEL_MAPS = 300  # more hardly move the leading directions of label patches and cost their decoding


def fit_to_labels(method: nn.Module, data: DataModule) -> int:
    """Call ``fit_labels(labels, ignore_index)`` of every module that has one and is not ``fitted`` yet.

    Weights that another run fitted (``init_from``, a run to stand on) stay. Every process does it alike. Returns how
    many modules there were.
    """
    waiting: list[Any] = [m for m in method.modules() if not getattr(m, "fitted", True)]
    for module in waiting:
        module.fit_labels(data.training_labels(LABEL_MAPS), data.info.ignore_index)
    return len(waiting)
