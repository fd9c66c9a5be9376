"""Between dense models and low-rank ones."""
