"""One file per paper, each a thin LightningModule behind one contract."""

from hardpix.methods.base import Method
from hardpix.methods.baseline import Baseline
from hardpix.methods.detail import Detail
from hardpix.methods.error_prediction import ErrorPrediction
from hardpix.methods.hardness import HardnessLevel
from hardpix.methods.lwm import LossWeightModule
from hardpix.methods.parts import Parts

__all__ = [
    "Baseline",
    "Detail",
    "ErrorPrediction",
    "HardnessLevel",
    "LossWeightModule",
    "Method",
    "Parts",
]
