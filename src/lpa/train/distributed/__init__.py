"""Process groups, parallel layouts, sharded initialization, per-step synchronization."""
