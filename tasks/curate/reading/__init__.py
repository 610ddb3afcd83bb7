"""Readers for common formats of conversations."""
