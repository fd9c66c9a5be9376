"""From a configuration and prepared data to a trained model."""
