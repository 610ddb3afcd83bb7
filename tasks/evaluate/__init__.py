"""Evaluate models, and compare candidates with a baseline on the same items."""
