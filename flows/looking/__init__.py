"""A first look at a file of conversations."""
