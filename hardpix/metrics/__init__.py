"""Streaming metrics."""

from hardpix.metrics.depth import DepthMetrics
from hardpix.metrics.error import ErrorMetrics, FusionMetrics
from hardpix.metrics.hardness import ErrorRanking, HardnessGroups
from hardpix.metrics.images import ImageScore, ImageScores
from hardpix.metrics.members import MemberMetrics, ShareMetrics
from hardpix.metrics.segmentation import SegmentationMetrics, scores

__all__ = [
    "DepthMetrics",
    "ErrorMetrics",
    "ErrorRanking",
    "FusionMetrics",
    "HardnessGroups",
    "ImageScore",
    "ImageScores",
    "MemberMetrics",
    "SegmentationMetrics",
    "ShareMetrics",
    "scores",
]
