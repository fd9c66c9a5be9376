"""Where text comes from: sources, the files they mean, and the documents in them."""
