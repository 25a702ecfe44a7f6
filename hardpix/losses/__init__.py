"""Losses ``(logits [B, C, H, W] at label size, label [B, H, W]) -> scalar``, all computed in float32.

Void pixels get a gradient of exactly zero, and a batch of void alone costs exactly 0.
"""

from hardpix.losses.balanced import BalancedCrossEntropy
from hardpix.losses.contrast import BankContrast, ContrastSettings
from hardpix.losses.cross_entropy import CrossEntropy
from hardpix.losses.focal import Focal
from hardpix.losses.max_pooling import LossMaxPooling
from hardpix.losses.ohem import OHEM
from hardpix.losses.rank_mining import LossRankMining

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
