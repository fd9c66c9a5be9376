"""The demonstration: dense and LPA side by side on the bundled corpus."""
