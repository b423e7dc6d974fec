"""A package of someone else's: one part of each kind that a node and a recipe can be made of.

It uses public names of ddnkit alone. What makes it a plugin is the list of entry points beside it.
"""
