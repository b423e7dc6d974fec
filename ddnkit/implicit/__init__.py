"""The implicit function theorem: derivatives of any order and direction of a solution."""
