"""One file per paper, each a thin LightningModule behind one contract."""

from hardpix.methods.base import Method
from hardpix.methods.baseline import Baseline
from hardpix.methods.detail import Bagging, Detail, LayerCascade
from hardpix.methods.error_prediction import ErrorPrediction
from hardpix.methods.hardness import HardnessLevel
from hardpix.methods.lwm import LossWeightModule
from hardpix.methods.semi import U2PL, U2PLHardness
from hardpix.methods.steps import Parts

__all__ = [
    "U2PL",
    "Bagging",
    "Baseline",
    "Detail",
    "ErrorPrediction",
    "HardnessLevel",
    "LayerCascade",
    "LossWeightModule",
    "Method",
    "Parts",
    "U2PLHardness",
]
