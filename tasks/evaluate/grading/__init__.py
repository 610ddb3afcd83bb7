"""Grades for one answer of a model."""
