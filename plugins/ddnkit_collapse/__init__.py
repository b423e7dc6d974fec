"""Neural collapse: its metrics on features and classifier, and the figures of a run.

The public names are listed in ``__init__.pyi`` and loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
