"""Decoders of segmentation_models_pytorch on hardpix's backbones. The only file that imports that package."""

from __future__ import annotations

import inspect
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.models.layers import Classifiers, Head
from hardpix.types import ConfigError, FeatureSpec

ENCODER = "hardpix"  # the name under which smp finds the pyramid
# smp counts levels from the image (strides 1, 2, 4, ...): how many come before a pyramid of that finest stride.
MISSING_LEVELS = {2: 1, 4: 2}
NEEDS_TOKENS = ("DPT",)
# Arguments of smp's models that do not shape the decoder, or that the backbone decides.
NOT_THE_DECODERS = (
    "encoder_name",
    "encoder_depth",
    "encoder_weights",
    "encoder_output_stride",
    "in_channels",
    "classes",
    "activation",
    "upsampling",
    "aux_params",
)
PROBE = (8, 16)  # cells of the deepest map on which a decoder is tried, without values


class _Pyramid(nn.Module):
    """What smp asks an encoder for while it builds a model; it never encodes.

    Levels before the pyramid's finest have no channels, as the missing stride 2 of smp's transformer encoders.
    """

    def __init__(self, channels: list[int], *, depth: int, output_stride: int) -> None:
        super().__init__()
        self.out_channels = channels[: depth + 1]
        self.output_stride = output_stride

    def set_in_channels(self, in_channels: int, pretrained: bool) -> None:
        """The backbone sees to it."""

    def make_dilated(self, output_stride: int) -> None:
        """The backbone sees to it."""


class SMPHead(Head):
    """One of smp's decoders, built by smp, under hardpix's classifiers (of smp's kernel size). One decoder map.

    The decoder reads the backbone's levels where smp's encoders have those of the same place: PSPNet and DeepLabV3
    the deepest. Dropout is its own, and so are its enlargements: ``align_corners`` governs that of the logits only.

    Maps are padded on the right and bottom, by repeating the border, to whole cells of the deepest stride, and the
    decoder's map is cropped back to where the finest map ends: where its stride is finer than the pyramid's, it
    measures a multiple of the finest map.

    Args:
        decoder: a model class of smp: Unet, UnetPlusPlus, MAnet, Linknet, FPN, PSPNet, DeepLabV3, DeepLabV3Plus, PAN
            (which needs 8 cells of the deepest stride), UPerNet, Segformer.
        options: that class's arguments of the decoder, ``{"decoder_channels": [256, 128, 64, 32, 16]}``; smp's
            defaults for the rest.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        decoder: str,
        options: dict[str, Any],
        align_corners: bool,
    ) -> None:
        super().__init__()
        kind = _kind(decoder)
        _check(kind, specs, options)
        self.strides = [spec.stride for spec in specs]
        size = [cells * self.strides[-1] for cells in PROBE]
        try:
            with torch.device("meta"):
                trial = _model(kind, specs, options).eval().decoder
                maps = [torch.empty(1, s.channels, size[0] // s.stride, size[1] // s.stride) for s in specs]
                seen = trial(self._with_missing(maps))
        except Exception as error:  # each decoder refuses in its own way
            raise ConfigError(_refusal(kind, specs, options, error)) from error
        self.features = (FeatureSpec(size[0] // seen.shape[-2], seen.shape[1]),)
        model = _model(kind, specs, options)
        self.decoder = model.decoder
        kernel_size = model.segmentation_head[0].kernel_size[0]
        self.classifiers = Classifiers(seen.shape[1], outputs, nn.Identity(), kernel_size=kernel_size)

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        finest, deepest = self.strides[0], self.strides[-1]
        seen = [side * finest for side in pyramid[0].shape[-2:]]  # the image, but for less than a cell
        cells = [-(-side // deepest) for side in seen]
        maps = [
            _pad(x, [n * deepest // s for n in cells]) for x, s in zip(pyramid, self.strides, strict=True)
        ]
        out = self.decoder(self._with_missing(maps))
        stride = self.features[0].stride
        return [out[..., : -(-seen[0] // stride), : -(-seen[1] // stride)]]

    def _with_missing(self, maps: list[Tensor]) -> list[Tensor]:
        """After maps of the strides before the finest, which have a size but no channels."""
        finest, (height, width) = self.strides[0], maps[0].shape[-2:]
        zooms = [finest // 2**level for level in range(MISSING_LEVELS[finest])]
        return [maps[0].new_empty(len(maps[0]), 0, height * z, width * z) for z in zooms] + maps


def _pad(x: Tensor, size: list[int]) -> Tensor:
    down, right = size[0] - x.shape[-2], size[1] - x.shape[-1]
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x


def _smp() -> Any:
    try:
        import segmentation_models_pytorch
    except ModuleNotFoundError:
        raise ConfigError(
            "head=smp: its decoders are those of the package segmentation-models-pytorch; "
            "install it with pip install 'hardpix[smp]'"
        ) from None
    return segmentation_models_pytorch


def _kind(decoder: str) -> Any:
    """smp's model class of that name."""
    known = {kind.__name__: kind for kind in _smp().MODEL_ARCHITECTURES_MAPPING.values()}
    usable = [name for name in known if name not in NEEDS_TOKENS]
    if decoder not in usable:
        reason = "reads the class token of a ViT" if decoder in NEEDS_TOKENS else "no such model in smp"
        raise ConfigError(f"head.decoder={decoder}: {reason}; choose one of {', '.join(usable)}")
    return known[decoder]


def _arguments(kind: Any) -> list[str]:
    return [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "kwargs")]


def _check(kind: Any, specs: tuple[FeatureSpec, ...], options: dict[str, Any]) -> None:
    free = [name for name in _arguments(kind) if name not in NOT_THE_DECODERS]
    wrong = [name for name in options if name not in free]
    if wrong:  # smp itself would swallow them
        raise ConfigError(
            f"head.options: {', '.join(wrong)} is no option of {kind.__name__}'s decoder in smp; it takes "
            f"{', '.join(free) or 'none'}"
        )
    if specs[0].stride not in MISSING_LEVELS:
        raise ConfigError(
            f"head.decoder={kind.__name__}: smp's decoders read maps of strides from 2 or 4 on, and the backbone's "
            f"are {_strides(specs)}; choose one with a pyramid (ResNet, ConvNeXt, Swin, MobileNet, HRNet)"
        )


def _model(kind: Any, specs: tuple[FeatureSpec, ...], options: dict[str, Any]) -> Any:
    """smp's model with the pyramid for its encoder; of it the decoder counts."""
    channels = [0] * MISSING_LEVELS[specs[0].stride] + [spec.channels for spec in specs]
    given = {"encoder_depth": len(channels) - 1, "encoder_output_stride": specs[-1].stride}
    given = {name: value for name, value in given.items() if name in _arguments(kind)}
    known = _smp().encoders.encoders
    known[ENCODER] = {"encoder": partial(_Pyramid, channels), "params": {}, "pretrained_settings": {}}
    try:
        return kind(ENCODER, encoder_weights=None, **given, **options)
    finally:
        del known[ENCODER]


def _refusal(kind: Any, specs: tuple[FeatureSpec, ...], options: dict[str, Any], error: Exception) -> str:
    summary = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    halving = all(b.stride == 2 * a.stride for a, b in pairwise(specs))
    return (
        f"head.decoder={kind.__name__}, head.options={options}: smp cannot run it on maps of strides "
        f"{_strides(specs)} ({summary}); set backbone.output_stride={'16 or 8' if halving else 'null'}, "
        "or other options"
    )


def _strides(specs: tuple[FeatureSpec, ...]) -> str:
    return ", ".join(str(spec.stride) for spec in specs)
