"""The commands of `lpa eval`."""
