"""Quantize weights to folders that transformers loads."""
