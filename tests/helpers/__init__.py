"""What tests build: models, runs and studies of moments, and what they watch."""
