"""Run models on evaluation prompts: generation, label choice, isolation and caching."""
