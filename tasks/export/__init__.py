"""Export models to files for serving engines."""
