"""What a model will cost, and which rank to give it."""
