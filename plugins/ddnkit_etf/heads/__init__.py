"""Classifier heads: features to logits, one head a file."""
