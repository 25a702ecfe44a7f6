"""Losses ``(logits [B, C, H, W] at label size, label [B, H, W]) -> scalar``."""

from hardpix.losses.cross_entropy import CrossEntropy

__all__ = ["CrossEntropy"]
