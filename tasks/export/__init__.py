"""Export of models to files for serving engines."""
