"""What a model expects, token by token."""
