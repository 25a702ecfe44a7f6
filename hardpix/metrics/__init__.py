"""Streaming metrics."""

from hardpix.metrics.depth import DepthMetrics
from hardpix.metrics.error import ErrorMetrics, FusionMetrics
from hardpix.metrics.segmentation import SegmentationMetrics, scores

__all__ = ["DepthMetrics", "ErrorMetrics", "FusionMetrics", "SegmentationMetrics", "scores"]
