"""Ask a model the test split, and grade what it says."""
