"""Data sets, joint transforms and loading."""

from hardpix.data.ade20k import ADE20K
from hardpix.data.base import Frames, Sample, Source
from hardpix.data.camvid import CamVid
from hardpix.data.cifar100 import CIFAR100
from hardpix.data.cityscapes import Cityscapes
from hardpix.data.coco import Coco
from hardpix.data.datamodule import DataModule
from hardpix.data.fingerprint import changed_since, content_sample, edited, fingerprint, stamp
from hardpix.data.folder import Folder
from hardpix.data.gtav import GTAV
from hardpix.data.hn import HN
from hardpix.data.huggingface import HuggingFace
from hardpix.data.isaid import ISAID
from hardpix.data.listed import Listed
from hardpix.data.missing_depth import told_without_depth, without_depth
from hardpix.data.nyuv2 import NYUv2
from hardpix.data.nyuv2_raw import NYUv2Raw
from hardpix.data.packed import Packed, pack
from hardpix.data.photometric import Photometric
from hardpix.data.rgbd import RGBDFolder
from hardpix.data.sunrgbd import SUNRGBD
from hardpix.data.synthetic import SyntheticRooms
from hardpix.data.tensors import DepthMap
from hardpix.data.total_text import TotalText
from hardpix.data.transforms import TestTransform, TrainTransform

__all__ = [
    "ADE20K",
    "CIFAR100",
    "GTAV",
    "HN",
    "ISAID",
    "SUNRGBD",
    "CamVid",
    "Cityscapes",
    "Coco",
    "DataModule",
    "DepthMap",
    "Folder",
    "Frames",
    "HuggingFace",
    "Listed",
    "NYUv2",
    "NYUv2Raw",
    "Packed",
    "Photometric",
    "RGBDFolder",
    "Sample",
    "Source",
    "SyntheticRooms",
    "TestTransform",
    "TotalText",
    "TrainTransform",
    "changed_since",
    "content_sample",
    "edited",
    "fingerprint",
    "pack",
    "stamp",
    "told_without_depth",
    "without_depth",
]
