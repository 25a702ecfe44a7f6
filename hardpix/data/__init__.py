"""Data sets, joint transforms and loading."""

from hardpix.data.base import Frames, Sample, Source
from hardpix.data.camvid import CamVid
from hardpix.data.datamodule import DataModule
from hardpix.data.nyuv2 import NYUv2
from hardpix.data.photometric import Photometric
from hardpix.data.synthetic import SyntheticRooms
from hardpix.data.tensors import DepthMap
from hardpix.data.transforms import TestTransform, TrainTransform

__all__ = [
    "CamVid",
    "DataModule",
    "DepthMap",
    "Frames",
    "NYUv2",
    "Photometric",
    "Sample",
    "Source",
    "SyntheticRooms",
    "TestTransform",
    "TrainTransform",
]
