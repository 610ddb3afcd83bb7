"""Wiring: one file per command, and the planner."""
