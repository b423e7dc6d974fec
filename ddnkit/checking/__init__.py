"""Gradient checking: is the solution one, is its gradient right, and if not, why."""
