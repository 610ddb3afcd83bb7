"""Compare candidates with a baseline on the same items."""
