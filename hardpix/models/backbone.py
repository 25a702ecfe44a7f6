"""Backbones: any timm model as a pyramid of feature maps. The only file that imports timm."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm.layers
import timm.models
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hardpix.config.schema import Count
from hardpix.types import ConfigError, FeatureSpec

_log = logging.getLogger(__name__)

MIN_STRIDE = 4  # finer maps (the stem's) belong to no published head and cost the most memory
VGG16_BN = "vgg16_bn.tv_in1k"
SINGLE_STRIDE_LEVELS = 4  # of a plain ViT: evenly spaced blocks, 3 6 9 12 of 12
# Some families accept images of other sizes only when asked to, each with its own option; both come first, because
# some of timm's older classes swallow the words they do not know.
ANY_SIZE_OPTIONS: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "strict_img_size": False},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)


# The contract of a backbone: image -> pyramid of feature maps, in stages that can be frozen by name.


class Backbone(nn.Module):
    """Image ``[B, in_channels, H, W]`` -> :class:`Pyramid` of as many maps as ``specs``, finest first.

    The last map is what a head reads that reads one. It may be finer than the one before where the backbone ends by
    joining what it has (BiSeNetV2); heads that climb level by level refuse such a pyramid.

    Subclasses set ``specs``, and implement ``levels`` and ``stages``.
    """

    specs: tuple[FeatureSpec, ...]
    freeze_bn: bool = False
    frozen: tuple[str, ...] = ()

    def levels(self, image: Tensor, stitch: Stitch | None = None) -> Pyramid:
        """The maps, finest first; ``stitch`` replaces each one before anything reads it."""
        raise TypeError(f"{type(self).__name__} does not say how it encodes")

    def stages(self) -> dict[str, list[nn.Module]]:
        """The modules behind each name that ``freeze`` takes, in the order in which they run."""
        raise TypeError(f"{type(self).__name__} does not name its stages")

    def forward(self, image: Tensor, stitch: Stitch | None = None) -> Pyramid:
        return self.levels(image, stitch)

    def freeze(self, names: Sequence[str]) -> None:
        """No gradient for these stages, and their norms and dropout in inference mode whatever the rest does."""
        known = self.stages()
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ConfigError(
                f"freeze: the backbone has no stage {', '.join(unknown)}; its stages are {', '.join(known)}"
            )
        self.frozen = tuple(names)
        for name in names:
            for module in known[name]:
                module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.freeze_bn:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        stages = self.stages() if self.frozen else {}
        for name in self.frozen:
            for module in stages[name]:
                module.eval()
        return self


class TimmBackbone(Backbone):
    """Image ``[B, in_channels, H, W]`` -> NCHW maps ``[B, c, h, w]``, finest first, as ``specs`` says.

    Levels are those of timm's ``features_only`` with a stride of at least 4: for a ResNet layer1 to layer4 (strides
    4, 8, 16, 32, or 4, 8, 8, 8 with ``output_stride=8``); for a plain ViT four evenly spaced blocks, all of one
    stride. ``options={"out_indices": [...]}`` chooses timm's levels oneself and drops none.

    A map measures ``ceil(H / stride)``. Families that would cut an image of another size (ConvNeXt) or refuse it
    (ViT, Swin, HRNet) get it padded with 0, the mean colour, on the right and bottom, and their maps cropped back.

    Args:
        pretrained: True (the hub, or its cache) | False | path of a ``.safetensors``, ``.pth`` or ``.pt`` file as
            timm publishes it for this model; classifier weights in it are ignored.
        options: passed on to timm's constructor, for example ``{"drop_path_rate": 0.2}`` or ``{"img_size": 512}``.
        output_stride: stride of the coarsest level, reached by dilation where timm can; None: the model's own.
        freeze_bn: batch norm keeps its running statistics in training (scale and shift are still trained).
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool | str,
        options: dict[str, Any],
        in_channels: int = 3,
        output_stride: Count | None = None,
        freeze_bn: bool = False,
    ) -> None:
        super().__init__()
        check_source(name, options)
        _check_name(name)
        options = options | {"in_chans": in_channels}
        net, options = _create(name, options, output_stride)
        first = 0 if "out_indices" in options else _first_level(net.feature_info.reduction())
        if len(set(net.feature_info.reduction())) == 1 and "out_indices" not in options:
            options |= {"out_indices": _spread(len(net.feature_info.info), SINGLE_STRIDE_LEVELS)}
            net = _features(name, options)
        if pretrained is True:
            net = _from_hub(name, options)
        elif isinstance(pretrained, str):
            _load_file(net, name, options, pretrained)
        self.name, self.net, self.first, self.freeze_bn = name, net, first, freeze_bn
        self.channels_last = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")
        info = list(zip(net.feature_info.reduction(), net.feature_info.channels(), strict=True))
        self.specs = tuple(FeatureSpec(stride, channels) for stride, channels in info[first:])
        self.multiple = self._find_multiple(in_channels)

    def forward(self, image: Tensor, stitch: Stitch | None = None) -> Pyramid:
        maps = self.levels(image, stitch)
        if self.multiple == 1:
            return maps
        height, width = image.shape[-2:]
        sized = zip(maps, (spec.stride for spec in self.specs), strict=True)
        return Pyramid([x[..., : -(-height // s), : -(-width // s)] for x, s in sized])

    def levels(self, image: Tensor, stitch: Stitch | None = None) -> Pyramid:
        """The maps before they are cropped to ``ceil(H / stride)``."""
        if self.multiple > 1:
            height, width = image.shape[-2:]
            image = F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple))
        if stitch is not None:
            return self._stitched(image, stitch)
        maps = self.net(image)[self.first :]
        return Pyramid([x.permute(0, 3, 1, 2) if self.channels_last else x for x in maps])

    def _stitched(self, x: Tensor, stitch: Stitch) -> Pyramid:
        pyramid = Pyramid()
        for level, modules in enumerate(self._cut()):
            for module in modules:
                x = module(x)
            x = stitch(level, x.permute(0, 3, 1, 2) if self.channels_last else x)
            pyramid.append(x)
            x = x.permute(0, 2, 3, 1) if self.channels_last else x
        return pyramid

    def stages(self) -> dict[str, list[nn.Module]]:
        """``stem``, and ``stage1`` .. which end at the levels."""
        first, *later = self._cut()
        named = {f"stage{number}": modules for number, modules in enumerate(later, 2)}
        return {"stem": first[:-1], "stage1": first[-1:]} | named

    def _cut(self) -> list[list[nn.Module]]:
        """timm's modules in the order in which they run, cut behind each level."""
        if not isinstance(self.net, timm.models.FeatureListNet):
            raise ConfigError(
                f"backbone.name={self.name}: timm cannot cut this family into stages, which freeze and "
                "model=cross_stitch need; choose a ResNet, ConvNeXt, Swin or RegNet, or backbone=segnet"
            )
        parts: list[list[nn.Module]] = [[]]
        passed = 0
        for name, module in self.net.items():
            parts[-1].append(module)
            if name in self.net.return_layers:
                passed += 1
                if passed > self.first:
                    parts.append([])
        return parts[:-1]

    @torch.no_grad()
    def _find_multiple(self, in_channels: int) -> int:
        """Smallest size step whose padding makes every map ``ceil(H / stride)``; found on a small odd image."""
        strides = [spec.stride for spec in self.specs]
        height, width = 2 * max(strides) + 1, 3 * max(strides) + 1
        expected = [(-(-height // s), -(-width // s)) for s in strides]
        self.eval()
        for self.multiple in (1, min(strides), max(strides)):
            try:
                maps = self(torch.zeros(1, in_channels, height, width))
            except (AssertionError, RuntimeError, ValueError):  # timm's ways to refuse a size
                continue
            if [tuple(x.shape[-2:]) for x in maps] == expected:
                self.train()
                return self.multiple
        raise ConfigError(
            f"backbone.name={self.name}: its maps do not follow images of any size (it takes one size only, or crops "
            "inside), which training crops and whole-image prediction need; choose another model"
        )


def convert_sync_batch_norm(module: nn.Module) -> nn.Module:
    """Batch norm -> synchronised batch norm, keeping timm's fused activations.

    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` would replace timm's norm-and-activation layers (MobileNetV3,
    EfficientNet) by a bare norm and silently lose the activation.
    """
    return timm.layers.convert_sync_batchnorm(module)


def _check_name(name: str) -> None:
    base = name.partition(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3, cutoff=0.4)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ConfigError(f"backbone.name={name}: timm {timm.__version__} has no such model{hint}")


def _create(name: str, options: dict[str, Any], output_stride: int | None) -> tuple[Any, dict[str, Any]]:
    """The feature network with random weights, and the options it was made with."""
    net: Any
    net, options = _create_any_size(name, options)
    own = net.feature_info.reduction()
    if output_stride in (None, max(own)):
        return net, options
    options = options | {"output_stride": output_stride}
    with contextlib.suppress(AssertionError, TypeError, ValueError, RuntimeError, NotImplementedError):
        net = timm.create_model(name, features_only=True, **options)
    if max(net.feature_info.reduction()) != output_stride:
        raise ConfigError(
            f"backbone.output_stride={output_stride}: timm cannot dilate {name} to it (its strides are "
            f"{', '.join(map(str, own))}); set null, or 8, 16 or 32 with a ResNet, ConvNeXt or MobileNetV3"
        )
    return net, options


def _create_any_size(name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    for extra in ANY_SIZE_OPTIONS:
        try:
            return timm.create_model(name, features_only=True, **extra | options), extra | options
        except TypeError as error:
            if not any(key in str(error) for key in extra):
                break
        except Exception:  # reported below in full
            break
    return _features(name, options), options


def _features(name: str, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, features_only=True, **options)
    except TypeError as error:
        raise ConfigError(f"backbone.options: {name} does not take them: {_line(error)}") from error
    except Exception as error:  # each family refuses in its own way
        raise ConfigError(
            f"backbone.name={name}: timm cannot make a feature pyramid of it ({_line(error)})"
        ) from error


def _first_level(strides: list[int]) -> int:
    return next((i for i, stride in enumerate(strides) if stride >= MIN_STRIDE), 0)


def _spread(depth: int, count: int) -> list[int]:
    """``count`` evenly spaced block indices, the last block included."""
    return sorted({depth * (i + 1) // count - 1 for i in range(count)} - {-1})


def _from_hub(name: str, options: dict[str, Any]) -> Any:
    try:
        with hub():
            return timm.create_model(name, pretrained=True, features_only=True, **options)
    except Exception as error:  # the hub's client, urllib and timm each raise types of their own
        raise ConfigError(
            f"backbone.pretrained=true: no weights of {name} in the hub's cache or on the network "
            f"({_line(error)}); set backbone.pretrained to a local .safetensors or .pth file of them, or to false"
        ) from error


def _load_file(net: nn.Module, name: str, options: dict[str, Any], path: str) -> None:
    """Copy a file's tensors into ``net``; every tensor of ``net`` must be in it, and nothing foreign to the model."""
    stored = {_flat(key): value for key, value in _read(path).items()}
    # The whole model knows the names that a feature network leaves out: classifier, last norm, fixed buffers.
    whole = timm.create_model(name, **{k: v for k, v in options.items() if k != "out_indices"})
    known = {
        _flat(key) for tensors in (whole.named_parameters(), whole.named_buffers()) for key, _ in tensors
    }
    wanted = {key: _flat(key.removeprefix("model.")) for key in net.state_dict()}
    _fill(net, wanted, stored, known, f"backbone.pretrained={path}: not weights of {name}")
    _log.info("%s: tensors from %s", name, path)


def load_vgg16_bn(net: nn.Module, names: dict[str, str], pretrained: bool | str, in_channels: int) -> None:
    """Copy the convolutions and norms of timm's ``vgg16_bn``, from the hub (True) or a file, into ``net``.

    ``names``: all tensors of ``net`` -> timm's; the file may have classifier layers besides, and no other ones.
    """
    given = pretrained is True
    tensors = _from_hub(VGG16_BN, {"in_chans": in_channels}).state_dict() if given else _read(str(pretrained))
    stored = {_flat(key): value for key, value in tensors.items()}
    wanted = {own: _flat(theirs) for own, theirs in names.items()}
    known = {*wanted.values(), *(key for key in stored if not key.startswith("features_"))}
    value = "true" if given else pretrained
    _fill(net, wanted, stored, known, f"backbone.pretrained={value}: not weights of vgg16_bn as configured")


def _fill(
    net: nn.Module, wanted: dict[str, str], stored: dict[str, Tensor], known: set[str], fault: str
) -> None:
    """``wanted``: tensors of ``net`` -> names in ``stored``, which must hold them and only ``known`` ones."""
    state = {key: stored[flat] for key, flat in wanted.items() if flat in stored}
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    foreign = [key for key in stored if key not in known]
    shapes = [k for k, value in net.state_dict().items() if k in state and state[k].shape != value.shape]
    for problem, keys in (("lacks", missing), ("has the foreign", foreign), ("has another shape of", shapes)):
        if keys:
            raise ConfigError(
                f"{fault}: of {len(wanted)} tensors {len(state)} match by name, and it {problem} "
                f"{', '.join(keys[:3])} ({len(keys)} in all); give a file that timm publishes for this model"
            )
    net.load_state_dict(state, strict=False)


def _read(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise ConfigError(f"backbone.pretrained={path}: no such file; give a .safetensors, .pth or .pt file")
    try:
        return timm.models.load_state_dict(path, device="cpu", weights_only=True)
    except Exception as error:  # unpickling and safetensors raise anything
        more = "weights_only" in str(error)  # their text goes on to advise how to run what is in the file
        what = "it holds more than plain data, which was not run" if more else _line(error)
        raise ConfigError(
            f"backbone.pretrained={path}: not a file of weights only ({what}); give a .safetensors, .pth or "
            ".pt file that holds tensors by name"
        ) from None


def _flat(key: str) -> str:
    """timm's feature networks rename ``stages.0.blocks`` to ``stages_0.blocks``."""
    return key.replace(".", "_")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


# (level, its map [B, c, h, w]) -> the map that the next stage and the pyramid get instead
Stitch = Callable[[int, Tensor], Tensor]


class Pyramid(list[Tensor]):
    """Encoder maps ``[B, c, h, w]``, finest first, and where their values stood before the max-pooling of each.

    Args:
        indices: int64 maps of the maps' shapes, as ``max_pool2d`` returns them; empty where nothing is unpooled.
        sizes: (height, width) that each map had before its pooling; as many as ``indices``.
    """

    def __init__(
        self,
        maps: Iterable[Tensor] = (),
        indices: Sequence[Tensor] = (),
        sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__(maps)
        self.indices, self.sizes = list(indices), list(sizes)

    def detach(self) -> Pyramid:
        """The same values without a way back to the encoder."""
        return Pyramid([x.detach() for x in self], self.indices, self.sizes)


def he_initialise(module: nn.Module) -> None:
    """All convolutions of ``module`` from a normal distribution of variance 2 / fan-in, biases 0 (He et al. 2015)."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


# Sources of a backbone's weights, and the hub's answers in limited time.


HUB_SECONDS = 5.0  # to be connected with; its client alone tries for more than a minute

LOADING = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def check_source(name: str, options: dict[str, Any]) -> None:
    """Refuse names such as ``hf-hub:OWNER/NAME`` and ``local-dir:PATH``, and options that load."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(
            f"backbone.name={name}: must be a name of timm's own list; weights from elsewhere are a file, "
            "backbone.pretrained=FILE.safetensors"
        )
    if loading := sorted(set(options) & set(LOADING)):
        raise ConfigError(
            f"backbone.options.{loading[0]}: is not passed on; weights are given by backbone.pretrained"
        )


@contextmanager
def hub() -> Iterator[None]:
    """Within: timm asks the hub, or only the files that it has left here before, if nobody answers there."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(endpoint: str) -> bool:
    place = urlsplit(endpoint)
    if place.scheme in getproxies() or place.hostname is None:
        return True  # the way there is not ours to judge
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        socket.create_connection((place.hostname, port), HUB_SECONDS).close()
    except OSError:
        return False
    return True
