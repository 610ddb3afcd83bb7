"""lm-evaluation-harness benchmarks, offline, with every sample kept."""
