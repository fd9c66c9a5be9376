"""GGUF files of llama.cpp: written, read, and their tokenizers."""
