"""What the sections of a recipe on images may hold; nothing here imports torch."""

from .backbones import (
    VGG11,
    VGG13,
    VGG16,
    DenseNetBC,
    ResNet18,
    ResNet32,
    ResNet34,
    ResNet50,
    ResNet101,
)
from .data import (
    CIFAR10,
    CIFAR100,
    CUB200,
    MNIST,
    STL10,
    SVHN,
    FashionMNIST,
    ImageFolder,
    ImageNetLT,
    SmallImages,
    StreamedImageSettings,
)

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CUB200",
    "MNIST",
    "STL10",
    "SVHN",
    "VGG11",
    "VGG13",
    "VGG16",
    "DenseNetBC",
    "FashionMNIST",
    "ImageFolder",
    "ImageNetLT",
    "ResNet18",
    "ResNet32",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "SmallImages",
    "StreamedImageSettings",
]
