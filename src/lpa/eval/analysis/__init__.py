"""Why attention bears low rank: spectra, attention maps, and what a truncation costs."""
