"""Everything that a report shows, as typed records."""
