"""Networks: backbone, heads and the segmenter made of them; they know nothing of methods or data."""

from hardpix.models.ann import ANNHead
from hardpix.models.backbone import TimmBackbone, convert_sync_batch_norm
from hardpix.models.bisenetv2 import BiSeNetV2
from hardpix.models.cascades import RefineNetCascadesHead
from hardpix.models.ccnet import CCHead
from hardpix.models.cross_stitch import STREAMS, CrossStitch
from hardpix.models.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from hardpix.models.dpc import DPCHead
from hardpix.models.dupsampling import DUpsamplingHead
from hardpix.models.emanet import EMAHead
from hardpix.models.encoder import Backbone, Pyramid
from hardpix.models.fcn import FCNHead
from hardpix.models.fpn import FPNHead
from hardpix.models.gau import GAU, ConvGroupNorm, DetailBranch, ErrorBranch, choose_skips
from hardpix.models.gau_decoder import GAUDecoderHead
from hardpix.models.gcnet import GCHead
from hardpix.models.head import Head, HeadOutput
from hardpix.models.isanet import ISAHead
from hardpix.models.lraspp import LRASPPHead
from hardpix.models.nonlocal_net import NonLocalHead
from hardpix.models.ocr import OCRHead
from hardpix.models.psanet import PSAHead
from hardpix.models.psp import PSPHead
from hardpix.models.refinenet import RefineNetBlock, RefineNetHead
from hardpix.models.segformer import SegFormerHead
from hardpix.models.segmenter import Segmenter
from hardpix.models.segnet import SegNetEncoder, SegNetHead
from hardpix.models.smp import SMPHead
from hardpix.models.tiles import TrackedGroupNorm, tiles_read
from hardpix.models.unet import UNetHead
from hardpix.models.uper import UPerHead

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
