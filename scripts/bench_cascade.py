"""Error prediction's cascade beside the segmenter that it repairs: time of its branches, on tiles, and memory.

``python scripts/bench_cascade.py`` prints the rows; all sides of each run in turn.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bench_numeric import Row, medians, row
from torch import Tensor

SIZE = (512, 1024)
SHARES = (0.01, 0.04, 0.1)  # of flagged pixels, in connected patches
TILE = 128


def rows(repeats: int = 3) -> list[Row]:
    return [*times(repeats), *memory()]


def times(repeats: int) -> Iterator[Row]:
    """DeepLabv3+ with a ResNet-50 (output stride 16) at 512 x 1024, one image."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, *SIZE)
    dense, tiled = cascade(), cascade("method.statistics=tracked", f"method.tile={TILE}")
    sides: dict[str, Callable[[], object]] = {
        "segmenter": partial(_segment, dense, image),
        "cascade": partial(_decide, dense, image),
        "errors": partial(_errors, dense, dense.semantic(image), image),
        "detail": partial(_detail, dense, dense.semantic(image)),
    }
    ran = {}
    for share in SHARES:
        logit = flagged(share)
        sides[f"{share}"] = partial(_decide_flagged, tiled, image, logit)
        tiled.tiles_run = tiled.tiles = 0
        sides[f"{share}"]()
        ran[share] = tiled.tiles_run / tiled.tiles
    found = dict(zip(sides, medians(repeats, *sides.values()), strict=True))
    whole = found["segmenter"]
    size = "x".join(map(str, SIZE))
    yield row(f"cascade / its segmenter, {size}", found["cascade"], whole, "<= 1.6 x")
    yield row("error branch / segmenter", found["errors"], whole, "<= 0.2 x")
    yield row("detail branch / segmenter", found["detail"], whole, "<= 0.74 x")
    for share in SHARES:
        title = f"cascade on tiles of {TILE}, {share:.0%} flagged ({ran[share]:.0%} of tiles) / segmenter"
        yield row(title, found[f"{share}"], whole, "<= 1.6 x")


def memory() -> Iterator[Row]:
    """Peak of resident memory above the level before, of one prediction."""
    from hardpix.train.cost import _reset_resident_peak, _resident, _settle

    image, method = torch.randn(1, 3, *SIZE), cascade()
    peaks = []
    for predict in (_decide, _segment):
        predict(method, image)
        gc.collect()
        level = _settle()
        _reset_resident_peak()
        predict(method, image)
        peaks.append(_resident("VmHWM") - level)
    yield {**row("peak memory of the cascade / its segmenter", peaks[0], peaks[1], "<= 1.5 x"), "unit": "MB"}


def cascade(*overrides: str) -> Any:
    """The method ``detail`` on networks as initialised."""
    from hardpix.config.compose import compose
    from hardpix.train.build import build
    from hardpix.train.parent import with_parent

    cfg = compose([
        "head=deeplabv3plus", "head.dilations=[6,12,18]", "backbone=resnet50", "backbone.pretrained=false",
        "backbone.output_stride=16", "data.num_workers=0",
    ])  # fmt: skip
    for given in (["method=error_prediction"], ["method=detail", *overrides]):
        cfg = with_parent(compose([*given, "parent=none", "data.num_workers=0"]), cfg, "parent")
    torch.manual_seed(0)
    return build(cfg, training=False)[1].eval()


def flagged(share: float) -> Tensor:
    """Logits of P_ep ``[1, 1, H / 4, W / 4]``, above every threshold on ``share`` of the map, in smooth patches."""
    torch.manual_seed(1)
    coarse = torch.randn(1, 1, SIZE[0] // 64, SIZE[1] // 64)
    smooth = torch.nn.functional.interpolate(coarse, (SIZE[0] // 4, SIZE[1] // 4), mode="bicubic")
    return torch.where(smooth > smooth.quantile(1 - share), 9.0, -9.0)


@torch.inference_mode()
def _segment(method: Any, image: Tensor) -> None:
    method.enlarge(method.model(image).outputs["label"], image.shape).log_softmax(1)


@torch.inference_mode()
def _decide(method: Any, image: Tensor) -> None:
    method.predict_logits(image)


@torch.inference_mode()
def _decide_flagged(method: Any, image: Tensor, logit: Tensor) -> None:
    """The error branch runs, what it says is not used."""
    run = type(method).error_map

    def said(semantic: Any, image: Tensor) -> Tensor:
        run(method, semantic, image)
        return logit

    method.error_map = said
    method.predict_logits(image)


@torch.inference_mode()
def _errors(method: Any, semantic: Any, image: Tensor) -> None:
    method.error_map(semantic, image)


@torch.inference_mode()
def _detail(method: Any, semantic: Any) -> None:
    method.detail_map(semantic)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for r in rows():
        print(
            f"{r['name']:76} {r['ours']:8.1f} {r['reference']:8.1f} {r['unit']}  {r['ratio']:6.3f} x  {r['goal']}"
        )
