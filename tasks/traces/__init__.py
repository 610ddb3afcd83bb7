"""Have a teacher answer the training prompts."""
