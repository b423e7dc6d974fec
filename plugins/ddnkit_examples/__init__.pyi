from .budget_price import LogarithmicHousehold, QuadraticHousehold, price_in_closed_form
from .low_rank_completion import Completion
from .orthogonal_layers import DeepLinear
from .settings import BudgetPrice, LowRankCompletion, OrthogonalLayers

__all__ = [
    "BudgetPrice",
    "Completion",
    "DeepLinear",
    "LogarithmicHousehold",
    "LowRankCompletion",
    "OrthogonalLayers",
    "QuadraticHousehold",
    "price_in_closed_form",
]
