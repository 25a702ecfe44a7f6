"""A trained method as an ONNX graph: normalised image in, class logits or labels out."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hardpix.types import ConfigError

INPUT, OUTPUTS = "image", ("logits", "labels")
NAMES = {0: "batch", 2: "height", 3: "width"}  # of the free extents, in the file

# B, channels, H, W: no two alike, and none of 1 at stride 32, or torch would take them for one, or for fixed.
TRACED = (2, 3, 160, 224)


class Inference(nn.Module):
    """``image`` ``[B, 3, H, W]`` -> what a method predicts of the whole image in one piece.

    ``logits`` ``[B, C, H, W]`` float32 (log-probabilities where the method decides by those), or ``labels``
    ``[B, H, W]`` int64. What exists for training alone is no part of it.
    """

    def __init__(self, method: nn.Module, output: str) -> None:
        super().__init__()
        self.method, self.output = method.eval(), output

    def forward(self, image: Tensor) -> Tensor:
        logits = self.method(image)
        return logits if self.output == "logits" else logits.argmax(1)


def exported(graph: Inference, size: Sequence[int] | None, opset: int) -> Any:
    """The graph as torch's ``ONNXProgram``; ``size`` (H, W) fixes what is free otherwise. The batch is always free.

    Raises ``ConfigError`` in one sentence where torch cannot follow the computation.
    """
    shape = TRACED if size is None else (TRACED[0], 3, *size)
    free = dict.fromkeys((0, 2, 3) if size is None else (0,), torch.export.Dim.DYNAMIC)
    example = torch.zeros(shape)
    with torch.no_grad():
        graph(
            example
        )  # a size that the network refuses is told by itself, and what is looked up once is looked up
    try:
        with torch.no_grad(), PoolsByMatrix(), _quietly():
            program = torch.export.export(graph, (example,), dynamic_shapes=(free,), strict=False)
            return torch.onnx.export(
                program, opset_version=opset, input_names=[INPUT], output_names=[graph.output],
                dynamic_shapes=({d: NAMES[d] for d in free},), dynamo=True, verbose=False,
            )  # fmt: skip
    except Exception as error:  # torch raises a dozen kinds here
        fixed = "" if size is not None else "; --size H W fixes the size, which more networks allow"
        raise ConfigError(f"{_who(graph)} cannot be exported: {_reason(error)}{fixed}") from error


def _who(graph: Inference) -> str:
    method: Any = graph.method
    return f"{type(method).__name__} with {type(getattr(method.model, 'head', method.model)).__name__}"


def _reason(error: BaseException) -> str:
    """What the innermost cause says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if "DataDependent" in type(error).__name__:
        return "what it computes depends on values that are known only when it runs"
    line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
    return line[:200].rstrip(".")


class PoolsByMatrix(TorchFunctionMode):
    """Adaptive average pooling as two products with matrices made of the size: ONNX has none for sizes not known."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (F.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d):
            return adaptive_pool(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def adaptive_pool(x: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """``[B, c, h, w]`` -> ``[B, c, i, j]``, means over torch's bins; None keeps an extent."""
    counts = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    down, across = (n if count is None else count for n, count in zip(x.shape[-2:], counts, strict=True))
    return _bins(x.shape[-2], down, x) @ x @ _bins(x.shape[-1], across, x).t()


def _bins(size: int, count: int, like: Tensor) -> Tensor:
    """``[count, size]``: row i averages ``floor(i size / count)`` up to, without, ``ceil((i + 1) size / count)``."""
    place = torch.arange(size, device=like.device)[None]
    index = torch.arange(count, device=like.device)[:, None]
    inside = (place >= index * size // count) & (place < ((index + 1) * size + count - 1) // count)
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """Torch and its exporter think aloud."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        sink = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
