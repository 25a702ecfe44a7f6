"""Streaming metrics."""

from hardpix.metrics.depth import DepthMetrics
from hardpix.metrics.error import ErrorMetrics, FusionMetrics
from hardpix.metrics.members import MemberMetrics, ShareMetrics
from hardpix.metrics.segmentation import SegmentationMetrics, scores

__all__ = [
    "DepthMetrics",
    "ErrorMetrics",
    "FusionMetrics",
    "MemberMetrics",
    "SegmentationMetrics",
    "ShareMetrics",
    "scores",
]
