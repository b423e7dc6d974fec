from .budget_price import LogarithmicHousehold, QuadraticHousehold, price_in_closed_form
from .settings import BudgetPrice

__all__ = [
    "BudgetPrice",
    "LogarithmicHousehold",
    "QuadraticHousehold",
    "price_in_closed_form",
]
