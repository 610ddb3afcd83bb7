"""Advice for a model, machine, data and budget: rules, sizes by precision, and a recipe."""
