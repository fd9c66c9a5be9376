"""Metrics, loggers, timers and text samples of a run."""
