"""Speed and memory of dense and low-rank models on this machine."""
