"""The runs of a study, in processes here or on a cluster."""
