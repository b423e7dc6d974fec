"""Recipes: YAML files that say what to run, validated before anything heavy is imported."""
