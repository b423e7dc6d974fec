"""Neural collapse: its metrics on features and classifier, and the figures of a run.

The public names are listed in ``__init__.pyi`` and loaded on first use.
"""

import lazy_loader

from ddnkit.renamed import with_old_names

_lookup, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(
    __name__,
    _lookup,
    {
        "PublishedFigures": "ddnkit_gnc:Experiment",
        "published_figures": "ddnkit_gnc:experiment",
        "published_names": "ddnkit_gnc:experiment_names",
    },
)
