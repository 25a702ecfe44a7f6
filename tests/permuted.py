"""``pytest -p tests.permuted``: convolutions and linear layers add up their input channels in another order.

The sums are the same but for rounding, as on another processor: no test may notice.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.cache
def order(channels: int) -> Tensor:
    return torch.randperm(channels, generator=torch.Generator().manual_seed(channels))


def permuted(layer, axis: int):
    """``layer(input, weight, ...)`` with the channels of both, ``axis`` of the input, turned alike."""

    @functools.wraps(layer)
    def turned(input: Tensor, weight: Tensor, *given, **more):
        channels = weight.shape[1]
        # Groups have channels of their own; a fake tensor has no values.
        if channels > 1 and input.shape[axis] == channels and type(input) is Tensor:
            places = order(channels).to(weight.device)
            input, weight = input.index_select(axis, places), weight.index_select(1, places)
        return layer(input, weight, *given, **more)

    return turned


F.conv2d = permuted(F.conv2d, 1)
F.linear = permuted(F.linear, -1)
