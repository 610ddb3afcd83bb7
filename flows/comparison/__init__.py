"""Comparison of models without a recipe of their own, by the evaluation of another recipe."""
