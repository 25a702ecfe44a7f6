"""One file per paper, each a thin LightningModule behind one contract."""

from hardpix.methods.bagging import Bagging
from hardpix.methods.base import Method
from hardpix.methods.baseline import Baseline
from hardpix.methods.detail import Detail
from hardpix.methods.error_prediction import ErrorPrediction
from hardpix.methods.hardness import HardnessLevel
from hardpix.methods.layer_cascade import LayerCascade
from hardpix.methods.lwm import LossWeightModule
from hardpix.methods.parts import Parts
from hardpix.methods.semi import U2PL
from hardpix.methods.semi_hardness import U2PLHardness

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
