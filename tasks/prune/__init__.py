"""Remove what a model can spare."""
