from .comparison import Case, Comparison, Competitor
from .contract import Bench, Request, Result
from .floor import Floor
from .forms import Forms
from .measured import Measured
from .report import duration

__all__ = [
    "Bench",
    "Case",
    "Comparison",
    "Competitor",
    "Floor",
    "Forms",
    "Measured",
    "Request",
    "Result",
    "duration",
]
