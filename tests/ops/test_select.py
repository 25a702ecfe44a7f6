"""Selection equals the sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hardpix.ops.pixel import kth_smallest


@pytest.mark.parametrize("n", [1, 5, 100, 20_000])
@pytest.mark.parametrize("kind", ["random", "ties", "sorted", "void"])
def test_kth_smallest(n, kind):
    rng = np.random.default_rng(n)
    values = rng.random(n).astype(np.float32)
    if kind == "ties":
        values = np.round(values * 3) / 3
    if kind == "sorted":
        values = np.sort(values)[::-1].copy()
    if kind == "void":
        values[rng.random(n) < 0.5] = np.inf
    for k in {0, n // 3, n // 2, n - 1}:
        assert kth_smallest(torch.from_numpy(values), k).item() == np.sort(values)[k]
