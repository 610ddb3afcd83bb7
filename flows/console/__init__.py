"""Messages, tables and exit codes that a person sees in the terminal."""
