"""From a composed recipe to a checked plan, its keys and its cost."""
