"""Floating-point operations, counted while they run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Tally(TorchDispatchMode):
    """Counts what runs while it is active; a context manager that may be entered again, and then counts on.

    ``flops`` are those of convolutions, matrix products and attention, forward and backward, by torch's formulas, a
    multiplication and an addition being two; norms, activations, poolings, enlargements and losses count nothing.
    Where a formula fails they are NaN and ``problem`` says why: what runs is never disturbed. ``parameters`` is the
    number of weights in the parameters that entered any operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.problem = 0.0, ""
        self._read: dict[int, int] = {}  # sizes by identity

    @property
    def parameters(self) -> int:
        return sum(self._read.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._read |= {id(x): x.numel() for x in tree_leaves((args, kwargs)) if isinstance(x, nn.Parameter)}
        formula: Any = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # inference mode brings whole layers here, which autograd has taken apart before
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self._add(formula, args, kwargs, out)
        return out

    def _add(self, formula: Any, args: Any, kwargs: Any, out: Any) -> None:
        try:
            self.flops += formula(*args, **kwargs, out_val=out)
        except Exception as error:
            self.flops, self.problem = float("nan"), f"{type(error).__name__}: {error}"


def is_compiled(module: nn.Module) -> bool:
    """Whether a part of ``module`` runs under ``torch.compile``, into which no count sees."""
    return any(getattr(part, "_compiled_call_impl", None) is not None for part in module.modules())
