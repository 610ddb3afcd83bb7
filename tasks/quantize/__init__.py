"""Quantization of weights to compressed-tensors folders."""
