"""Long-tailed learning: imbalanced subsets, dot-regression loss, mixup, layer-peeled models.

Public names are loaded when first used, so that reading a recipe costs no torch.
"""

import lazy_loader

from ddnkit.renamed import with_old_names

_lookup, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(__name__, _lookup, {"mixed": "mix"})
