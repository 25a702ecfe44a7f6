"""Parts of a network that start from the training data are fitted to them before the first step."""

from __future__ import annotations

import json
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from hardpix.data import DataModule
from hardpix.methods import Method
from hardpix.run import rundir

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


@torch.no_grad()
def start_regressions(method: Method, data: DataModule, cfg: DictConfig) -> None:
    """Set the biases of outputs that estimate a number (:meth:`Method.regressions`) to where they start.

    To be called before weights of another run are taken over, which then stay. Every process does it alike.
    """
    for name, output in method.regressions().items():
        biases, start = method.model.output_biases(name), output.start
        if start is None:
            source = json.dumps(rundir.plain(cfg)["data"]["source"], sort_keys=True)
            start = data.training_mean(
                output.target,
                output.keys,
                what=f"the {name} of {data.info.name}",
                identity=f"{source} {output.identity}",
            )
        if start is None:  # not one frame has a target: the loss of the output is 0 throughout
            continue
        print(f"output {name}: its bias starts at {start:.4f}", flush=True)
        for bias in biases:
            bias.fill_(start)
