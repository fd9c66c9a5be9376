"""Configuration, optimizer, loop, checkpoints and metrics of a training run."""
