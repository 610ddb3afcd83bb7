"""Content of a report as typed records."""
