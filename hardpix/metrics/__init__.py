"""Streaming metrics."""

from hardpix.metrics.depth import DepthMetrics
from hardpix.metrics.segmentation import SegmentationMetrics, scores

__all__ = ["DepthMetrics", "SegmentationMetrics", "scores"]
