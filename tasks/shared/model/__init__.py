"""Models of transformers: loading, saving, weights, layout, generation."""
