"""What a trained model is worth: perplexity and text."""
