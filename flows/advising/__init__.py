"""Advice for a model, machine, data and budget: a table of rules, sizes by precision, and a recipe."""
