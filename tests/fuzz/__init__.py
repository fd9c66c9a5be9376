"""Command lines and files that nobody should give, tried by the thousand: see scripts/fuzz."""
