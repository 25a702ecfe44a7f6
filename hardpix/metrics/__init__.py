"""Streaming metrics."""

from hardpix.metrics.segmentation import SegmentationMetrics, scores

__all__ = ["SegmentationMetrics", "scores"]
