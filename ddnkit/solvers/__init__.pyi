from .newton import Newton

__all__ = ["Newton"]
