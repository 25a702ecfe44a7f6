"""Pure tensor functions: the papers' equations. Knows nothing of models, data or training."""

from hardpix.ops.window import MultiScale, SlidingWindow, WholeImage

__all__ = ["MultiScale", "SlidingWindow", "WholeImage"]
