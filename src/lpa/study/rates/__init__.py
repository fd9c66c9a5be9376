"""Learning rates: tuned for each variant, and transferred to longer runs."""
