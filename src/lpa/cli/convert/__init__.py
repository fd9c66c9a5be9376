"""The commands of `lpa convert`."""
