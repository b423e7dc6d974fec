"""Benchmarks: ways to do the same work, side by side in one run. Public; see `Comparison`."""

import lazy_loader

from ..renamed import with_old_names

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(__name__, __getattr__, {"Measured": "Measurement"})
