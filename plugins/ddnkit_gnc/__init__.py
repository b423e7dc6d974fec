"""The paper *Guiding Neural Collapse* (NeurIPS 2024): its published figures, and its code's choices.

The public names are listed in ``__init__.pyi`` and loaded on first use. Nothing here imports torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
