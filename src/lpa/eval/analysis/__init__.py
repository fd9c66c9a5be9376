"""Why attention tolerates low rank: spectra, attention maps, and what a truncation costs."""
