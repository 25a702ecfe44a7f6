"""Losses ``(logits [B, C, H, W] at label size, label [B, H, W]) -> scalar``, all computed in float32.

Void pixels get a gradient of exactly zero, and a batch of void alone costs exactly 0.
"""

from hardpix.losses.contrast import BankContrast, ContrastSettings
from hardpix.losses.mining import OHEM, LossMaxPooling, LossRankMining
from hardpix.losses.pixelwise import BalancedCrossEntropy, CrossEntropy, Focal

__all__ = [
    "OHEM",
    "BalancedCrossEntropy",
    "BankContrast",
    "ContrastSettings",
    "CrossEntropy",
    "Focal",
    "LossMaxPooling",
    "LossRankMining",
]
