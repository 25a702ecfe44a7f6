"""Streaming metrics."""

from hardpix.metrics.depth import DepthMetrics
from hardpix.metrics.errors import ErrorMetrics, FusionMetrics
from hardpix.metrics.hardness import ErrorRanking, HardnessGroups
from hardpix.metrics.segmentation import (
    ImageScore,
    ImageScores,
    MemberMetrics,
    SegmentationMetrics,
    ShareMetrics,
    scores,
)

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
