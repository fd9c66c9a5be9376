"""Files on disk: whole files, checked records, outputs known as ours, locks, and a run's file names."""
