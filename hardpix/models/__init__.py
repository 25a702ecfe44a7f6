"""Networks: backbone, heads and the segmenter made of them; they know nothing of methods or data."""

from hardpix.models.backbone import TimmBackbone, convert_sync_batch_norm
from hardpix.models.cascades import RefineNetCascadesHead
from hardpix.models.cross_stitch import STREAMS, CrossStitch
from hardpix.models.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from hardpix.models.dpc import DPCHead
from hardpix.models.dupsampling import DUpsamplingHead
from hardpix.models.encoder import Backbone, Pyramid
from hardpix.models.fcn import FCNHead
from hardpix.models.gau import GAU, ConvGroupNorm, DetailBranch, ErrorBranch, choose_skips
from hardpix.models.gau_decoder import GAUDecoderHead
from hardpix.models.head import Head, HeadOutput
from hardpix.models.psp import PSPHead
from hardpix.models.refinenet import RefineNetBlock, RefineNetHead
from hardpix.models.segmenter import Segmenter
from hardpix.models.segnet import SegNetEncoder, SegNetHead
from hardpix.models.tiles import TrackedGroupNorm, tiles_read
from hardpix.models.uper import UPerHead

__all__ = [
    "GAU",
    "STREAMS",
    "Backbone",
    "ConvGroupNorm",
    "CrossStitch",
    "DPCHead",
    "DUpsamplingHead",
    "DeepLabV3Head",
    "DeepLabV3PlusHead",
    "DetailBranch",
    "ErrorBranch",
    "FCNHead",
    "GAUDecoderHead",
    "Head",
    "HeadOutput",
    "PSPHead",
    "Pyramid",
    "RefineNetBlock",
    "RefineNetCascadesHead",
    "RefineNetHead",
    "SegNetEncoder",
    "SegNetHead",
    "Segmenter",
    "TimmBackbone",
    "TrackedGroupNorm",
    "UPerHead",
    "choose_skips",
    "convert_sync_batch_norm",
    "tiles_read",
]
