"""What the sections of a recipe on images may hold; nothing here imports torch."""

from .backbones import VGG11, VGG13, VGG16, ResNet18, ResNet34, ResNet50
from .data import CIFAR10, CIFAR100, MNIST, STL10, SVHN, FashionMNIST, ImageFolder, SmallImages

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "STL10",
    "SVHN",
    "VGG11",
    "VGG13",
    "VGG16",
    "FashionMNIST",
    "ImageFolder",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "SmallImages",
]
