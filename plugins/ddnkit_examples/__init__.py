"""Worked examples of constrained nodes, each a recipe to run and to start from.

Public names are loaded when first used, so that reading a recipe costs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
