"""Data-dependent upsampling (Decoders Matter for Semantic Segmentation, Tian et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.schema import Count, Share
from hardpix.models.deeplab import ASPP
from hardpix.models.layers import Classifiers, Concat, ConvNormAct, Head, HeadOutput
from hardpix.ops.resize import resize
from hardpix.types import ConfigError, DataError, FeatureSpec, HardpixError

MAX_ENTRIES = (
    8192  # of a label patch: its matrix of second moments then takes 0.5 GB and minutes to decompose
)
PATCHES = 1024  # of one map, drawn evenly where it has more: maps of any size count alike


class DUpsamplingHead(Head):
    """All levels joined at the coarsest one's size; there a code of each label patch, which a linear map spells out.

    The linear map ``W [C * ratio**2, code_channels]`` is a 1x1 convolution whose output is rearranged to patches of
    ``ratio x ratio`` pixels, divided by a learned temperature. ``W`` starts from the training labels
    (:meth:`fit_labels`), and a head without that refuses to run. Output ``label [B, C, h * ratio, w * ratio]``, cut
    where the finest level shows that the image ends before; further outputs are read at ``h x w`` by 1x1.

    Decoder maps: the joined one, which the classifiers read, and the ASPP output, both of the coarsest level's stride.
    Images whose sides are multiples of that stride fit the patches exactly, others up to the finest level's stride.

    Not in the parts of the paper that could be checked, and chosen here: the joined levels and their widths (as
    DeepLabv3+: separable ASPP of the deepest, 1x1 to ``low_channels`` of the others, 3x3 of all); the length of the
    code; ``W`` trains on after its start; temperature ``exp(t)`` with ``t`` from 0, so that it stays positive; which
    patches are fitted (see :meth:`fit_labels`).

    Args:
        channels: of the ASPP and the joined map.
        low_channels: width to which every level but the deepest is reduced before it is joined.
        code_channels: length of the code of a patch.
        ratio: side of a patch in the output's pixels; the coarsest level's stride gives an output of full size, a
            divisor of it a smaller one, which is enlarged bilinearly as any head's.
    """

    class_tensors: ClassVar = ("spell.", "frequency")
    frequency: Tensor

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        low_channels: Count,
        code_channels: Count,
        ratio: Count,
        dilations: Sequence[Count],
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
        project_kernel: Literal[1, 3],
    ) -> None:
        super().__init__()
        self.align_corners, self.ratio = align_corners, ratio
        self.input = Concat(specs, levels, align_corners=align_corners)
        deep = FeatureSpec(self.input.spec.stride, channels)
        self.aspp = ASPP(
            self.input.spec.channels,
            channels,
            dilations,
            separable=True,
            align_corners=align_corners,
            project_kernel=project_kernel,
        )
        self.low = nn.ModuleList(ConvNormAct(spec.channels, low_channels, 1) for spec in specs[:-1])
        self.join = ConvNormAct(channels + len(self.low) * low_channels, channels, 3)
        self.features = (deep, deep)
        self.classes = outputs.get("label", 0)
        if self.classes:
            _check(ratio, deep.stride, self.classes, code_channels)
            entries = self.classes * ratio**2
            self.spell = nn.Conv2d(code_channels, entries, 1, bias=False)
            self.log_temperature = nn.Parameter(torch.zeros(1))
            # How often each entry of a patch is one; all zero until the labels have been seen.
            self.register_buffer("frequency", torch.zeros(entries))
        self.stride = deep.stride // ratio
        self.finest = specs[0].stride
        widths = {name: code_channels if name == "label" else width for name, width in outputs.items()}
        self.classifiers = Classifiers(channels, widths, nn.Dropout2d(dropout))
        self._fitted = False

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        deep = self.aspp(self.input(pyramid))
        size = (deep.shape[-2], deep.shape[-1])
        low = [
            resize(reduce(x), size, align_corners=self.align_corners)
            for reduce, x in zip(self.low, pyramid, strict=False)
        ]
        return [self.join(torch.cat([deep, *low], 1)), deep]

    def forward(self, pyramid: list[Tensor]) -> HeadOutput:
        outputs, decoder, _ = super().forward(pyramid)
        if self.classes:
            if not self.fitted:
                raise HardpixError(
                    "head=dupsampling: its projection has not been fitted to training labels; train it with "
                    "`hardpix train`, which does so first, call fit_labels, or load weights of a trained run"
                )
            label = self._upsample(outputs["label"])
            seen = [side * self.finest // self.stride for side in pyramid[0].shape[-2:]]
            outputs = outputs | {"label": label[..., : max(seen[0], 1), : max(seen[1], 1)]}
        return HeadOutput(outputs, decoder)

    def _upsample(self, code: Tensor) -> Tensor:
        """``[B, code_channels, h, w]`` -> ``[B, C, h * ratio, w * ratio]``."""
        return F.pixel_shuffle(self.spell(code), self.ratio) / self.log_temperature.exp()

    @property
    def fitted(self) -> bool:
        """Whether the labels have been seen, here or by the run whose weights were loaded; True without ``label``."""
        if not self._fitted:  # on the meta device there are shapes alone
            self._fitted = not self.classes or self.frequency.is_meta or bool(self.frequency.any())
        return self._fitted

    @torch.no_grad()
    def fit_labels(self, labels: Iterable[Tensor], ignore_index: int) -> None:
        """Set ``W`` to the least-squares optimum on label patches: the ``code_channels`` first eigenvectors of
        ``sum v v^T``, ``v [C * ratio**2]`` the one-hot vector of a patch, which minimise ``sum |v - W W^T v|^2``.

        No mean is subtracted, since the map has no bias. Labels are taken at the output's size (every n-th pixel where
        that is smaller) and cut into patches that do not overlap; patches with void are left out, and of those of
        one tensor no more than 1024 are drawn, always the same.

        Args:
            labels: maps ``[B, H, W]`` int64, of any sizes; read once, one at a time.
        """
        moments = torch.zeros(len(self.frequency), len(self.frequency), dtype=torch.float64)
        count = 0
        draw = torch.Generator().manual_seed(0)
        start = self.stride // 2
        for label in labels:
            patches = label_patches(label[:, start :: self.stride, start :: self.stride], self.ratio)
            known = (patches != ignore_index) & (patches >= 0) & (patches < self.classes)
            patches = patches[known.all(1)]
            patches = patches[torch.randperm(len(patches), generator=draw)[:PATCHES]]
            count += len(patches)
            patches, times = patches.unique(dim=0, return_counts=True)  # most hold one class alone
            vectors = one_hot(patches, self.classes)
            moments += ((vectors * times[:, None]).T @ vectors).double()
        if count == 0:
            side = self.ratio * self.stride
            raise DataError(
                f"head=dupsampling: no training label has a patch of {side} x {side} pixels without void, to which the "
                "projection could be fitted; lower head.ratio"
            )
        self.spell.weight.copy_(principal(moments, self.spell.in_channels)[..., None, None])
        self.frequency.copy_(moments.diagonal() / count)


def label_patches(label: Tensor, ratio: int) -> Tensor:
    """``[B, H, W]`` -> ``[N, ratio**2]``: the whole patches of each map from the top left, row by row, pixels too."""
    if min(label.shape[1:]) < ratio:
        return label.new_empty(0, ratio**2)
    patches = label.unfold(1, ratio, ratio).unfold(2, ratio, ratio)
    return patches.reshape(-1, ratio**2)


def one_hot(patches: Tensor, classes: int) -> Tensor:
    """``[N, r]`` -> ``[N, classes * r]`` float32, the entry of class ``c`` at pixel ``i`` being ``c * r + i``."""
    return F.one_hot(patches, classes).transpose(1, 2).flatten(1).float()


def principal(moments: Tensor, count: int) -> Tensor:
    """Eigenvectors ``[n, count]`` of the largest eigenvalues of ``[n, n]``, largest first.

    The greatest entry of each is positive: else every process could come to a sign of its own.
    """
    vectors = torch.linalg.eigh(moments).eigenvectors.flip(1)[:, :count]
    greatest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * greatest.sign()


def _check(ratio: int, stride: int, classes: int, code_channels: int) -> None:
    if ratio < 1 or stride % ratio:
        raise ConfigError(
            f"head.ratio={ratio}: must divide {stride}, the stride of the encoder's deepest map"
        )
    if not 1 <= code_channels <= classes * ratio**2 <= MAX_ENTRIES:
        raise ConfigError(
            f"head.ratio={ratio}, head.code_channels={code_channels}: a patch of {classes} classes has "
            f"{classes * ratio**2} entries, which must be at most {MAX_ENTRIES} and no fewer than the code's"
        )
