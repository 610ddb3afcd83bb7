"""Make or import a corpus of conversations."""
