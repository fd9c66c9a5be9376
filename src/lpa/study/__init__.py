"""Experiments as declared runs, and their reports."""
