"""Documents in, tokens on disk, batches out."""
