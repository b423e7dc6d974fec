"""Quadratic programs in matrices: the node, solving a batch, calls without the general machinery."""
