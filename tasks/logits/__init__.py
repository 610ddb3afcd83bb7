"""Store a teacher's soft targets."""
