"""Runs: a folder for each, its jobs, their record, summary and report."""
