"""One run from start to end, with or without Prefect."""
