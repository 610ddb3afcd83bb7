"""One run from start to end, with Prefect or without it."""
