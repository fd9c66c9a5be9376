"""Configuration, model and arithmetic of the decoder."""
