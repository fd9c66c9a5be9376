"""Comparisons of LPA with its baselines, and their reports."""
