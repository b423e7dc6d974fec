from .augmentation import FlipCropRotate
from .backbones import VGG, CifarResNet, densenet_bc, resnet
from .image_files import ImageFiles
from .readers import read_idx
from .streaming import StreamedImages, View

__all__ = [
    "VGG",
    "CifarResNet",
    "FlipCropRotate",
    "ImageFiles",
    "StreamedImages",
    "View",
    "densenet_bc",
    "read_idx",
    "resnet",
]
