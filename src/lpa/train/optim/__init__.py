"""Optimizers, learning-rate schedule, gradient clipping and weight decay."""
