"""What every stage needs, one noun per file."""
