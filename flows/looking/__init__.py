"""A first look at a file of conversations: what it holds, what it would become, what it can decide."""
