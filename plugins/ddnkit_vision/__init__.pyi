from .augmentation import FlipCropRotate
from .backbones import VGG, densenet_bc, resnet
from .cifar_resnet import CifarResNet
from .folders import ImageFiles
from .idx import read_idx
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
