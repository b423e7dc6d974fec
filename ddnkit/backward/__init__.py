"""Backward forms: how the solution of a node is differentiated, one form a file."""
