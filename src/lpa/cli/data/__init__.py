"""The commands of `lpa data`."""
