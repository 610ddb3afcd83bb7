"""Messages, tables and exit codes of the command line."""
