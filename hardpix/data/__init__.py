"""Data sets, joint transforms and loading."""

from hardpix.data.augment import Photometric
from hardpix.data.datamodule import DataModule
from hardpix.data.packed import Packed, pack
from hardpix.data.sets.ade20k import ADE20K
from hardpix.data.sets.camvid import CamVid
from hardpix.data.sets.cifar100 import CIFAR100
from hardpix.data.sets.cityscapes import Cityscapes
from hardpix.data.sets.coco import Coco
from hardpix.data.sets.gtav import GTAV
from hardpix.data.sets.hn import HN
from hardpix.data.sets.huggingface import HuggingFace
from hardpix.data.sets.isaid import ISAID
from hardpix.data.sets.nyuv2 import NYUv2, NYUv2Raw
from hardpix.data.sets.own import Folder, Listed
from hardpix.data.sets.rgbd import RGBDFolder
from hardpix.data.sets.sunrgbd import SUNRGBD
from hardpix.data.sets.total_text import TotalText
from hardpix.data.source import Frames, Sample, Source, missing_depth_text, without_depth
from hardpix.data.statistics import changed_since, content_sample, edited, fingerprint, stamp
from hardpix.data.synthetic.rooms import SyntheticRooms
from hardpix.data.transforms import DepthMap, TestTransform, TrainTransform

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
    "missing_depth_text",
    "pack",
    "stamp",
    "without_depth",
]
