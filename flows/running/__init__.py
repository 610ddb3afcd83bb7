"""A plan at work: schedule, child processes, records."""
