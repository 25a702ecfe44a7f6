"""One file per paper, each a thin LightningModule behind one contract."""

from hardpix.methods.base import Method, Parts
from hardpix.methods.baseline import Baseline
from hardpix.methods.hardness import HardnessLevel
from hardpix.methods.lwm import LossWeightModule

__all__ = ["Baseline", "HardnessLevel", "LossWeightModule", "Method", "Parts"]
