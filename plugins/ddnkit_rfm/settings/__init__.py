"""What the sections of a recipe of this plugin may hold; nothing here imports torch."""

from .deep_rfm import DeepRFMCollapse
from .networks import LayerwiseCollapse
from .theory import RFMTheory

__all__ = ["DeepRFMCollapse", "LayerwiseCollapse", "RFMTheory"]
