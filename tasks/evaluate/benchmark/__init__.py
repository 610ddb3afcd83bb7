"""Run lm-evaluation-harness on a model, offline, with every sample kept."""
