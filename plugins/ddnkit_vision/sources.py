"""The files of the data sets; of those that can be downloaded torchvision has the checksums."""

from __future__ import annotations

from pathlib import Path

from .files import Source

_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

CIFAR10 = Source(
    "cifar10",
    "CIFAR-10",
    tuple(
        f"cifar-10-batches-py/{file}"
        for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    ),
    170,
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
CIFAR100 = Source(
    "cifar100",
    "CIFAR-100",
    tuple(f"cifar-100-python/{file}" for file in ("train", "test", "meta")),
    169,
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
)
STL10 = Source(
    "stl10",
    "STL-10",
    tuple(f"stl10_binary/{split}_{part}.bin" for split in ("train", "test") for part in "Xy"),
    2640,
    "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
)
SVHN = Source(
    "svhn",
    "SVHN",
    ("train_32x32.mat", "test_32x32.mat"),
    246,
    "http://ufldl.stanford.edu/housenumbers/",
)
MNIST = Source(
    "mnist",
    "MNIST",
    _IDX,
    12,
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    needs_torchvision=False,
    gzipped=True,
)
FASHION_MNIST = Source(
    "fashion_mnist",
    "Fashion-MNIST",
    _IDX,
    31,
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    needs_torchvision=False,
    gzipped=True,
    system=Path("/usr/share/datasets/fashion-mnist"),
    package="dataset-fashion-mnist",
)
IMAGE_FOLDER = Source(
    "image_folder",
    "image folder",
    ("train/", "val/"),
    origin="ImageNet is given only to those who ask for it at image-net.org; each class is a "
    "folder, train/CLASS/*.JPEG and val/CLASS/*.JPEG.",
    needs_torchvision=False,
)
IMAGENET_LT = Source(
    "imagenet_lt",
    "ImageNet-LT",
    ("ImageNet_LT_train.txt", "ImageNet_LT_test.txt"),
    origin="the lists are in data/ImageNet_LT of github.com/facebookresearch/classifier-balancing, "
    "the images, train/CLASS/*.JPEG and val/*.JPEG, are given to those who ask at image-net.org.",
    needs_torchvision=False,
)
CUB200 = Source(
    "cub200",
    "CUB-200-2011",
    ("images.txt", "image_class_labels.txt", "train_test_split.txt", "images/"),
    origin="CUB_200_2011.tgz (1.1 GB) is at www.vision.caltech.edu/datasets/cub_200_2011; unpack "
    "it.",
    inner="CUB_200_2011",
    needs_torchvision=False,
)

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CUB200",
    "FASHION_MNIST",
    "IMAGENET_LT",
    "IMAGE_FOLDER",
    "MNIST",
    "STL10",
    "SVHN",
]
