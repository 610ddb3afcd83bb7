"""Quantize weights to compressed-tensors folders."""
