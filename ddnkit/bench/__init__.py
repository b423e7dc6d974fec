"""Benchmarks: ways to do the same work, side by side in one run. Public; see `Comparison`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
