"""Teach a student from traces."""
