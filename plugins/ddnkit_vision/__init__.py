"""Image data sets and backbones for ddnkit: CIFAR, STL-10, SVHN, the MNIST family, image folders.

The public names are listed in ``__init__.pyi`` and loaded on first use. The recipe sections are
in `ddnkit_vision.settings`, which does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
