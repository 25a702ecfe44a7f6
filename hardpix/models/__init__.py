"""Networks: backbone, heads and the segmenter made of them; they know nothing of methods or data."""

from hardpix.models.backbone import TimmBackbone, convert_sync_batch_norm
from hardpix.models.fcn import FCNHead
from hardpix.models.head import Head, HeadOutput
from hardpix.models.segmenter import Segmenter

__all__ = ["FCNHead", "Head", "HeadOutput", "Segmenter", "TimmBackbone", "convert_sync_batch_norm"]
