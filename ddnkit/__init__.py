"""ddnkit: any argmin as a PyTorch layer whose gradient you can trust, at the size you need.

The public names are listed in ``__init__.pyi``. They are loaded on first use, so that
``ddnkit --help`` and ``ddnkit list`` never pay for importing torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
