from .case import Case, Competitor
from .comparison import Comparison
from .contract import Bench, Request, Result
from .floor import Floor
from .forms import Forms
from .measurement import Measurement, duration

__all__ = [
    "Bench",
    "Case",
    "Comparison",
    "Competitor",
    "Floor",
    "Forms",
    "Measurement",
    "Request",
    "Result",
    "duration",
]
