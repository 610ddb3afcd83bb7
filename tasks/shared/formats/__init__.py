"""Schemas of the artifacts that flow between steps."""
