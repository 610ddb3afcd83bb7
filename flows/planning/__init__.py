"""Recipe to checked plan: steps, keys, status and forecast cost."""
