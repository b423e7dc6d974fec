"""Quadratic programs in matrices: the node, solving a batch, calls without the general machinery."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
