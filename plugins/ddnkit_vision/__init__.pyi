from .augmentation import FlipCropRotate
from .backbones import VGG, resnet
from .folders import ImageFiles
from .idx import read_idx
from .streaming import StreamedImages, View

__all__ = [
    "VGG",
    "FlipCropRotate",
    "ImageFiles",
    "StreamedImages",
    "View",
    "read_idx",
    "resnet",
]
