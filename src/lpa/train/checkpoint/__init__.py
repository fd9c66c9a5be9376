"""Checkpoints: writing, verifying, resuming, and exporting the model."""
