"""Text to a prepared data directory: splitting, chunking, encoding, shards."""
