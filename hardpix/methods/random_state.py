"""The random number generators of a process, and what each of several processes keeps of its own in a checkpoint."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist


def random_state(device: torch.device) -> dict[str, Any]:
    """Of Python, NumPy and torch, and of ``device`` where that is a GPU; plain data and tensors."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002 - the generator others share
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Earlier versions kept the states of torch alone, of all GPUs in a list."""
    torch.set_rng_state(state["cpu"].cpu())
    cuda = state["cuda"]
    if isinstance(cuda, list):
        index = device.index or 0
        cuda = cuda[index] if index < len(cuda) else None
    if device.type == "cuda" and cuda is not None:
        torch.cuda.set_rng_state(cuda.cpu(), device)
    if "python" in state:
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002


def gathered(own: Any) -> list[Any]:
    """What every process gives, by rank. All of them must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found
