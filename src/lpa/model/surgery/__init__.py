"""Low-rank modules in place of the dense projections of a live model of any class."""
