"""A training step without its numbers: the memory and the messages of many processes, found in one."""
