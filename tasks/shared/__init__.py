"""Code that all stages share, one noun per file."""
