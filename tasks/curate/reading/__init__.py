"""Readers of conversations in the formats in which people have them."""
