"""Networks: backbone, heads and the segmenter made of them; they know nothing of methods or data."""

from hardpix.models.backbone import Backbone, Pyramid, TimmBackbone, convert_sync_batch_norm
from hardpix.models.bisenetv2 import BiSeNetV2
from hardpix.models.context import ANNHead, CCHead, EMAHead, GCHead, NonLocalHead
from hardpix.models.cross_stitch import STREAMS, CrossStitch
from hardpix.models.deeplab import DeepLabV3Head, DeepLabV3PlusHead, DPCHead
from hardpix.models.dupsampling import DUpsamplingHead
from hardpix.models.gau import GAU, ConvGroupNorm, DetailBranch, ErrorBranch, GAUDecoderHead, choose_skips
from hardpix.models.isanet import ISAHead
from hardpix.models.layers import Head, HeadOutput
from hardpix.models.ocr import OCRHead
from hardpix.models.psanet import PSAHead
from hardpix.models.pyramid import FCNHead, FPNHead, LRASPPHead, PSPHead, SegFormerHead, UNetHead, UPerHead
from hardpix.models.refinenet import RefineNetBlock, RefineNetCascadesHead, RefineNetHead
from hardpix.models.segmenter import Segmenter
from hardpix.models.segnet import SegNetEncoder, SegNetHead
from hardpix.models.smp import SMPHead
from hardpix.models.tiles import TrackedGroupNorm, tiles_read

__all__ = [
    "GAU",
    "STREAMS",
    "ANNHead",
    "Backbone",
    "BiSeNetV2",
    "CCHead",
    "ConvGroupNorm",
    "CrossStitch",
    "DPCHead",
    "DUpsamplingHead",
    "DeepLabV3Head",
    "DeepLabV3PlusHead",
    "DetailBranch",
    "EMAHead",
    "ErrorBranch",
    "FCNHead",
    "FPNHead",
    "GAUDecoderHead",
    "GCHead",
    "Head",
    "HeadOutput",
    "ISAHead",
    "LRASPPHead",
    "NonLocalHead",
    "OCRHead",
    "PSAHead",
    "PSPHead",
    "Pyramid",
    "RefineNetBlock",
    "RefineNetCascadesHead",
    "RefineNetHead",
    "SMPHead",
    "SegFormerHead",
    "SegNetEncoder",
    "SegNetHead",
    "Segmenter",
    "TimmBackbone",
    "TrackedGroupNorm",
    "UNetHead",
    "UPerHead",
    "choose_skips",
    "convert_sync_batch_norm",
    "tiles_read",
]
