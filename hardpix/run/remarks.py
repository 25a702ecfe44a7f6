"""What a run says before it trains: nothing about labels, draws or weights is silent."""

from __future__ import annotations

from hardpix.data import DataModule
from hardpix.methods import Method


def start_remarks(data: DataModule, method: Method) -> tuple[str, ...]:
    """Remarks of the data set, on repeated frames, and of a loss that has some: a line each."""
    of_loss = getattr(method.parts.loss, "remarks", None)
    return (*data.remarks(), *(of_loss(data.info.classes) if of_loss else ()))
