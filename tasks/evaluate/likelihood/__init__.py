"""Likelihoods of texts and next-token distributions under a model."""
