"""Execution of a plan: schedule, child processes, records."""
