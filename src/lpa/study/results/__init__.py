"""What the runs of a study found, with the statistics that judge it."""
