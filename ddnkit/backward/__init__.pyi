from .automatic import Automatic
from .closed_form import ClosedForm
from .dense import Dense
from .embedded_field import EmbeddedField
from .fixed_point import FixedPoint
from .krylov import Krylov
from .unrolled import Unrolled

__all__ = [
    "Automatic",
    "ClosedForm",
    "Dense",
    "EmbeddedField",
    "FixedPoint",
    "Krylov",
    "Unrolled",
]
